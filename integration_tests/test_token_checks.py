"""What tokens alone show is found on the real host: BOS twice, answers that no EOS ends, rows that are cut off."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration_tests.harness.data import (
    Config,
    base_config,
    chat_set,
    intel_set,
    pairs,
    read_rows,
    write_config,
    write_rows,
)
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import messages, refused
from integration_tests.harness.results import Result
from integration_tests.harness.sdpo import read_report, sdpo_config

# As Mistral's: BOS in front of all, and EOS behind what the assistant says.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{{ message['content'] }}"
    "{{ eos_token }}{% else %}[INST] {{ message['content'] }} [/INST]{% endif %}{% endfor %}"
)
MANY = "the " * 200  # tokens, beyond sequence_len
Found = dict[str, dict[str, tuple[int, list[int]]]]


@dataclass(frozen=True)
class Session:
    """Three sources under a template that writes BOS twice, refused by `preprocess`; under one that writes it once, and
    with one more, trained with `warn`."""

    preprocess: Result
    train: Result
    out: Path


def twice(path: Path) -> Config:
    """Ten prompts that a format begins with BOS; those of rows 1, 4 and 7 have it in the file already."""
    rows = pairs(10, 3)
    for number, row in enumerate(rows):
        row["question"] = f"{'<s>' if number in (1, 4, 7) else ''}[INST] {row['question']} [/INST]"
    write_rows(path, rows)
    kind = {"field_prompt": "question", "prompt_format": "<s>{prompt}"}
    return {"path": str(path), "ds_type": "json", "split": "train", "type": kind}


def cut_off(path: Path) -> Config:
    """Answers of rows 1, 3 and 6 are longer than sequence_len; row 4 has a prompt that is, and is dropped."""
    entry = intel_set(path, 8, 4)
    rows = read_rows(path)
    for number, side in ((1, "chosen"), (3, "rejected"), (6, "chosen")):
        rows[number] |= {"question": f"long {number}", side: MANY}
    rows[4]["question"] = MANY
    write_rows(path, rows)
    return entry


def unended(path: Path) -> Config:
    """Eight conversations that TRL itself puts through the template; in rows 2 and 5 an answer is the user's."""

    def said(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    rows = [
        {
            "prompt": said("user", row["question"]),
            "chosen": said("user" if number == 5 else "assistant", row["chosen"]),
            "rejected": said("user" if number == 2 else "assistant", row["rejected"]),
        }
        for number, row in enumerate(pairs(8, 5))
    ]
    return {"path": str(write_rows(path, rows)), "ds_type": "json", "split": "train", "type": None}


@pytest.fixture(scope="module")
def session(host: Host, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("tokens")
    host.python("integration_tests.harness.models:write_bos", model, folder / "bos")  # the tokenizer adds one as well
    texts = {
        "chats": chat_set(folder / "chats.jsonl", 8, 1),
        "twice": twice(folder / "twice.jsonl"),
        "cut": cut_off(folder / "cut.jsonl"),
    }
    talks = {**texts, "unended": unended(folder / "unended.jsonl")}

    def run(command: str, sources: dict[str, Config], template: str, check_data: str, **settings: object) -> Result:
        own = {"chat_template": "jinja", "chat_template_jinja": template, "shuffle_merged_datasets": False}
        config = base_config(folder / "bos", [], folder / command, **own, max_steps=1, **settings)
        steps = [{"name": name, "datasets": [entry]} for name, entry in sources.items()]
        block = {"steps": steps, "check_data": check_data, "diagnostics": {"matrix": False}}
        path = write_config(folder / f"{command}.yaml", sdpo_config(config, datasets=None, sdpo=block))
        return host.train(path) if command == "train" else host.run([command, str(path)], folder)

    return Session(
        run("preprocess", texts, "{{ bos_token }}" + TEMPLATE, "error", excess_length_strategy="truncate"),
        run("train", talks, TEMPLATE, "warn", skip_prepare_dataset=True).check(),
        folder / "train" / "out",
    )


def told(log: str) -> list[str]:
    """What the log says was found, with the numbers of the rows."""
    lines = re.findall(r"checks of the data: (step .*)", log)
    return [re.sub(r" \(prompt .*?\)(?=, |$)", "", line) for line in lines]


BOS = "have a prompt that begins with the BOS token twice, by its own text or by the chat template: row"
TWICE = f"step twice: 3 of 10 pairs (30.0%) {BOS}s 1, 4, 7"
CUT = "step cut: 3 of 7 pairs (42.9%) are longer than sequence_len, and have an answer that is cut off: rows 1, 3, 5"


def test_texts_are_told_by_preprocess_and_a_template_that_writes_bos_twice_is_refused(session: Session) -> None:
    assert session.preprocess.returncode != 0
    assert told(session.preprocess.log_text) == [
        f"step chats: 8 of 8 pairs (100.0%) {BOS}s 0, 1, 2, …",
        TWICE,
        CUT,
    ]
    (said,) = messages(session.preprocess)
    assert said.startswith(f"step chats: 8 of 8 pairs (100.0%) {BOS}s 0 (prompt")
    assert "More than 50% are refused. Remove it from the texts, or from the chat template." in said


def test_training_tells_them_and_conversations_without_an_end(session: Session) -> None:
    """A template that writes the BOS that the tokenizer adds, too, is none of these: one of the two is dropped."""
    assert told(session.train.log_text) == [
        TWICE,
        CUT,
        "step unended: 2 of 8 pairs (25.0%) have an answer that does not end with the EOS token: rows 2, 5",
    ]
    # By the numbers that are left; and by the words of the file, where they are rows 1, 3 and 6.
    (line,) = re.findall(r"checks of the data: step cut: .*", session.train.log_text)
    assert re.findall(r"(\d) \(prompt 'system be \w+ user (long \d) assistant'", line) == [
        ("1", "long 1"),
        ("3", "long 3"),
        ("5", "long 6"),
    ]


def test_counts_and_rows_are_in_the_report_and_clean_data_have_none(session: Session) -> None:
    kept = json.loads((session.out / "sdpo/data_checks.json").read_text(encoding="utf-8"))
    assert read_report(session.out)["data_checks"]["sources"] == kept["sources"]
    found: Found = {
        source["source"]: {kind: (of["num_rows"], of["rows"]) for kind, of in source["found"].items() if of["num_rows"]}
        for source in kept["sources"]
    }
    assert found == {
        "chats": {},
        "twice": {"doubled_bos": (3, [1, 4, 7])},
        "cut": {"truncated": (3, [1, 3, 5])},
        "unended": {"no_eos": (2, [2, 5])},
    }
    assert [source["num_dropped"] for source in kept["sources"]] == [0, 0, 1, 0]


def test_a_prompt_without_tokens_is_refused(host: Host, model: Path, tmp_path: Path) -> None:
    """With `skip_prepare_dataset` the host does not look for one; an answer's first token has nothing before it."""
    rows = pairs(8, 3)
    for row in (rows[3], rows[6]):
        row |= {"question": "", "chosen": "the reason is the river"}
    entry = {"ds_type": "json", "split": "train", "type": {"field_prompt": "question"}}
    sets = [entry | {"path": str(write_rows(tmp_path / "d1.jsonl", rows))}, intel_set(tmp_path / "d2.jsonl", 8, 4)]
    made = sdpo_config(base_config(model, sets, tmp_path, skip_prepare_dataset=True))
    result = host.train(write_config(tmp_path / "config.yaml", made))
    said = "2 of 8 rows have a prompt without tokens (the first has the chosen answer 'the reason is the river"
    refused(result, tmp_path / "out", "step-1", said, "a tokenizer that writes a beginning (a BOS token, a turn)")
