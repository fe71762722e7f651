"""Addresses that may be shown."""

import pytest

from sdpo_plugin.scrub import last_part, reveals, without_credentials, without_place


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://me:hush/hush@bucket/x.jsonl", "s3://bucket/x.jsonl"),
        ("'https://me:hush@host/x?token=hush' is not there", "'https://host/x is not there"),
        ("https://host:8080/a@b", "https://host:8080/a@b"),
        ("hf://datasets/a/b@main/x.jsonl", "hf://datasets/a/b@main/x.jsonl"),
        ("/data/a@b?c", "/data/a@b?c"),
    ],
)
def test_user_password_and_query_go(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


@pytest.mark.parametrize(
    ("text", "address", "is_told"),
    [
        ("Invalid bucket name 'me:hu'", "s3://me:hu/sh@bucket/x", True),
        ("no such token: abc", "https://host/x?token=abc", True),
        ("bucket is not there", "s3://bucket/x", False),
        ("timed out", "s3://xy:secret@bucket/x", False),
    ],
)
def test_a_part_of_them_is_noticed(text: str, address: str, is_told: bool) -> None:
    assert reveals(text, address) is is_told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/me/models/base/", "base"),
        ("~/base", "base"),
        ("C:\\models\\base", "base"),
        ("\\\\server\\share\\base", "base"),
        ("file:///home/me/base", "base"),
        ("s3://me:hush/hush@bucket/a b/x.jsonl", "x.jsonl"),
        ("/", "/"),
        ("https://me:hush@host/a/x.jsonl?key=1", "https://host/a/x.jsonl"),
        ("org/base", "org/base"),
        ("./out", "./out"),
        ("cosine", "cosine"),
        ("{% if x %}\n/home/", "{% if x %}\n/home/"),
        ("/a line\nof a template", "/a line\nof a template"),
    ],
)
def test_of_a_place_the_last_part_is_told(text: str, told: str) -> None:
    assert without_place(text) == told


def test_last_part_of_a_relative_path() -> None:
    assert (last_part("data/x.jsonl"), last_part("x"), last_part("../models/base/")) == ("x.jsonl", "x", "base")
