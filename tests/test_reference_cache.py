"""Tables that outlive a run: found by all that they depend on, and never used where anything is wrong with them."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdpo_plugin.errors import ReferenceTableError
from sdpo_plugin.report.build import build_report
from sdpo_plugin.report.html import html
from sdpo_plugin.report.render import markdown
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.reference_cache import ReferenceCache, TableKey
from tests.fakes import D_1, D_2, IDENTITY, FakeHost, content, digest, make_plan, run, table_of
from tests.faults import end_of, fork

KEY = TableKey(digest(D_2), 4, {"base": "w" * 32}, {"packed": True, "config": {"bf16": True}, "batch size": 4})
TABLE = table_of(D_2, 1.0, "M_0")


@pytest.fixture
def cache(tmp_path: Path) -> ReferenceCache:
    """A cache that holds one table."""
    made = ReferenceCache(tmp_path / "cache")
    made.write(KEY, TABLE)
    return made


def test_table_is_read_as_it_was_written_under_the_name_that_its_model_has_here(cache: ReferenceCache) -> None:
    found = cache.read(KEY, "M_1")
    assert found is not None
    assert content(found) == content(replace(TABLE, model="M_1"))
    assert (found.from_cache, TABLE.from_cache) == (True, False)


OTHERS: list[dict[str, Any]] = [
    {"rows_digest": digest(D_1)},
    {"num_rows": 5},
    {"weights": {"base": "v" * 32}},
    {"weights": {"base": "w" * 32, "weights": {"model.safetensors": "a"}}},
    {"settings": {**KEY.settings, "packed": False}},
    {"settings": {**KEY.settings, "config": {"bf16": False}}},
    {"settings": {**KEY.settings, "batch size": 8}},
    {"settings": {**KEY.settings, "attention": "sdpa"}},
]


@pytest.mark.parametrize("other", OTHERS, ids=[" ".join(other) + f"-{number}" for number, other in enumerate(OTHERS)])
def test_table_of_anything_else_is_another_one(cache: ReferenceCache, other: dict[str, Any]) -> None:
    asked = replace(KEY, **other)
    assert cache.read(asked, "M_0") is None
    assert cache.path(asked) != cache.path(KEY)


def test_order_in_which_facts_are_written_does_not_count(cache: ReferenceCache) -> None:
    backwards = replace(KEY, settings=dict(reversed(KEY.settings.items())))
    assert cache.path(backwards) == cache.path(KEY)


def test_table_under_another_name_is_not_used(cache: ReferenceCache) -> None:
    """A copy by hand: it is whole, and of the same rows."""
    asked = replace(KEY, weights={"base": "v" * 32})
    shutil.copy(cache.path(KEY), cache.path(asked))
    with pytest.raises(ReferenceTableError, match=rf"is a table of something else \({KEY.digest()[:12]}…\)"):
        cache.read(asked, "M_0")


def test_table_of_other_rows_is_not_kept(cache: ReferenceCache) -> None:
    with pytest.raises(ReferenceTableError, match="it was made for other data"):
        cache.write(KEY, table_of(D_1, 1.0, "M_0"))


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_table_is_never_used(cache: ReferenceCache, data: st.DataObject) -> None:
    """Cut, lengthened, or any byte changed: refused with its path, and nothing else happens."""
    cache.write(KEY, TABLE)
    path = cache.path(KEY)
    whole = path.read_bytes()
    size = data.draw(st.integers(0, len(whole)), label="size")
    at = data.draw(st.integers(0, len(whole) - 1), label="at")
    flip = data.draw(st.integers(1, 255), label="flip")
    kind = data.draw(st.sampled_from(["cut", "longer", "flipped"]), label="kind")
    changed = bytearray(whole)
    changed[at] ^= flip
    path.write_bytes({"cut": whole[:size], "longer": whole + bytes([flip]), "flipped": bytes(changed)}[kind])
    if path.read_bytes() == whole:
        return
    try:
        found = cache.read(KEY, "M_0")
    except ReferenceTableError as error:
        assert str(path) in str(error)  # noqa: PT017 (a byte of the header may not count)
    else:
        assert found is not None
        assert content(found) == content(TABLE)


def test_every_flipped_bit_of_the_numbers_is_found(cache: ReferenceCache) -> None:
    path = cache.path(KEY)
    whole = path.read_bytes()
    numbers = len(whole) - 4 * (2 * 4 + 2 * 8)  # 4 rows of two float32 and two int64
    for bit in range(8 * numbers, 8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(ReferenceTableError, match="does not fit its digest"):
            cache.read(KEY, "M_0")


def test_runs_that_write_at_once_do_not_spoil_it(tmp_path: Path) -> None:
    """Each writes the table 40 times while the other reads it: what is read is whole, or not there yet."""
    cache = ReferenceCache(tmp_path / "cache")

    def work() -> None:
        for _ in range(40):
            cache.write(KEY, TABLE)
            found = cache.read(KEY, "M_0")
            assert found is not None
            assert found.digest() == TABLE.digest()

    assert [end_of(pid) for pid in [fork(work), fork(work)]] == [0, 0]
    assert list((tmp_path / "cache").iterdir()) == [cache.path(KEY)]  # no half of one is left


# --- ledger and report ---


def test_ledger_and_report_say_which_tables_were_not_computed(run_dir: RunDir) -> None:
    class Reading(FakeHost):
        def heldout_tables(self, model: str, names: Any) -> dict[str, Any]:
            found = super().heldout_tables(model, names)
            return {name: replace(table, from_cache=model == "M_0") for name, table in found.items()}

    ledger = run(Reading(), run_dir)
    read = ["sdpo/heldout/M_0-1.safetensors", "sdpo/heldout/M_0-2.safetensors"]
    assert list(ledger.from_cache) == read
    assert Ledger.load(run_dir.ledger).from_cache == ledger.from_cache
    report = build_report(run_dir)
    assert report["from_cache"] == read
    said = "Read from sdpo.reference_cache, and not computed: heldout/M_0-1, heldout/M_0-2."
    assert said in markdown(report)
    assert "Read from sdpo.reference_cache, and not computed: heldout/" in html(report)
    plain = RunDir(run_dir.root.with_name("plain"))
    run(FakeHost(), plain)
    assert "reference_cache" not in markdown(build_report(plain)) + html(build_report(plain))


def test_table_that_is_computed_after_all_was_not_read() -> None:
    read = replace(TABLE, from_cache=True)
    ledger = Ledger.begin(make_plan(), IDENTITY).with_tables({"sdpo/a": read, "sdpo/b": read})
    assert ledger.from_cache == ("sdpo/a", "sdpo/b")
    assert ledger.with_tables({"sdpo/a": TABLE}).from_cache == ("sdpo/b",)
