"""Pairs are checked before they are trained on: planted defects are found, told, refused, and in the report."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from integration_tests.harness.data import (
    Config,
    Row,
    base_config,
    chat_set,
    intel_set,
    read_rows,
    write_config,
    write_rows,
)
from integration_tests.harness.launch import Host
from integration_tests.harness.messages import refused
from integration_tests.harness.results import Result
from integration_tests.harness.sdpo import read_report, sdpo_config

# It trims, and asks for an answer otherwise than it writes one: so every host looks for the answer in what it wrote.
TRIMMING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
NAMES = ["lost", "intel", "talks"]


@dataclass(frozen=True)
class Session:
    """One config, and what came of it: prepared and trained with `warn`, and refused with `error`."""

    preprocess: Result
    train: Result
    refused: Result
    out: Path
    refused_out: Path


def lost(entry: Config) -> Config:
    """Answers of three rows that are not too long, which the template's text does not hold, or holds earlier."""
    rows = read_rows(Path(entry["path"]))
    one, two, three, *_ = (row for row in rows if len(row["chosen"]["content"]) < 200)
    one["chosen"]["content"] = "  the river is clear"
    two["rejected"]["content"] = "because\n"
    three["chosen"]["content"] = "user"
    write_rows(Path(entry["path"]), rows)
    return entry


def spoilt(entry: Config) -> Config:
    """Row 1 has one answer twice, row 2 one without content; row 4 is row 3, and row 6 is row 5 turned round."""
    rows = read_rows(Path(entry["path"]))
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[2]["rejected"] = " "
    rows[4] = rows[3]
    rows[6] = {**rows[5], "chosen": rows[5]["rejected"], "rejected": rows[5]["chosen"]}
    write_rows(Path(entry["path"]), rows)
    return entry


def talks(path: Path) -> Config:
    """Twenty whole conversations; in rows 0 and 8 the rejected one answers another question.

    Every message has a number besides, which nothing reads.
    """
    number = count()

    def talk(question: str, answer: str) -> list[Row]:
        said = (("user", question), ("assistant", answer))
        return [{"role": role, "content": content, "id": next(number)} for role, content in said]

    write_rows(
        path,
        [
            {
                "chosen": talk(f"describe {n}", f"clear {n}"),
                "rejected": talk(f"describe {n + 50 if n in (0, 8) else n}", f"vague {n} and rude"),
            }
            for n in range(20)
        ],
    )
    return {"path": str(path), "ds_type": "json", "split": "train", "type": "chat_template.argilla_chat"}


@pytest.fixture(scope="module")
def session(host: Host, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("checks")
    entries = [
        lost(chat_set(folder / "lost.jsonl", 10, 1, long_rows=2)),
        spoilt(intel_set(folder / "intel.jsonl", 10, 2)),
        talks(folder / "talks.jsonl"),
    ]
    steps = [{"name": name, "datasets": [entry]} for name, entry in zip(NAMES, entries, strict=True)]
    template = {"chat_template": "jinja", "chat_template_jinja": TRIMMING, "max_steps": 1}
    config = base_config(model, [], folder, **template)

    def run(command: str, name: str, check_data: str) -> Result:
        block = {"steps": steps, "check_data": check_data, "diagnostics": {"matrix": False}}
        made = sdpo_config(config, datasets=None, sdpo=block, output_dir=str(folder / name))
        path = write_config(folder / f"{name}.yaml", made)
        return host.train(path) if command == "train" else host.run([command, str(path)], folder)

    return Session(
        run("preprocess", "warn", "warn").check(),
        run("train", "warn", "warn").check(),
        run("train", "error", "error"),
        folder / "warn",
        folder / "error",
    )


def test_answer_that_is_lost_behind_white_space_is_refused_by_its_row(host: Host, model: Path, tmp_path: Path) -> None:
    """Where a template ends with white space, nothing is left of such an answer, and the host refuses the row."""
    bad = lost(chat_set(tmp_path / "lost.jsonl", 4, 1))
    template = {"chat_template": "jinja", "chat_template_jinja": TRIMMING.replace("<|im_end|>", "<|im_end|>\n")}
    config = base_config(model, [bad, intel_set(tmp_path / "intel.jsonl", 4, 2)], tmp_path, **template)
    result = host.train(write_config(tmp_path / "config.yaml", sdpo_config(config)))
    refused(
        result,
        tmp_path / "out",
        *("row 0 has a field 'chosen' that is empty", "none that the template trims: strip the white space around it"),
    )


def table(log: str) -> dict[str, list[str]]:
    """The table that the log has, by its first column."""
    (text,) = re.findall(r"checks of the data, pairs of each source\n(.*?95 %, to [^\n]*)", log, re.DOTALL)
    lines = [re.split(r"  +", line.strip()) for line in text.splitlines()]
    return {first: rest for first, *rest in lines if not first.startswith("---")}


def told(log: str) -> list[str]:
    """What the log says was found: up to the names of the rows."""
    return [line.split(" (prompt")[0] for line in re.findall(r"checks of the data: (step .*)", log)]


FOUND = [
    "step lost: 3 of 10 pairs (30.0%) have an answer that lost its content on the way through the chat template: rows",
    "step intel: 1 of 10 pairs (10.0%) have the same tokens as chosen and as rejected answer: row",
    "step intel: 1 of 10 pairs (10.0%) have an answer without content: row",
    "step intel: 1 of 10 pairs (10.0%) are the same as a pair before them: row",
    "step intel: 2 of 10 pairs (20.0%) prefer what another pair rejects",
    "step talks: 2 of 20 pairs (10.0%) have a rejected answer to another prompt than the chosen one",
]


def test_preprocess_prints_the_counts_of_each_source(session: Session) -> None:
    found = table(session.preprocess.log_text)
    assert found["pairs"] == NAMES
    assert found["all pairs"] == ["10", "10", "20"]
    assert found["dropped (too long, or repeated)"] == ["2", "0", "0"]
    assert found["lost content"] == ["3", "–", "0"]  # chatml.intel looks for nothing
    assert found["chosen the same as rejected"] == ["0", "1", "0"]
    assert found["empty answer"] == ["0", "1", "0"]
    assert found["answers to different prompts"] == ["0", "0", "2"]
    assert found["duplicate"] == ["0", "1", "0"]
    assert found["contradictory"] == ["0", "2", "0"]
    assert [found[name] for name in ("BOS twice", "no BOS", "no EOS", "truncated")] == [["0"] * 3] * 4


@pytest.mark.parametrize("command", ["preprocess", "train"])
def test_each_thing_found_has_a_line(session: Session, command: str) -> None:
    """The same before training and in it, where TRL has tokenized what an earlier process prepared."""
    lines = told(getattr(session, command).log_text)
    assert len(lines) == len(FOUND) + 1  # and the length of the answers of the talks
    assert all(line.startswith(start) for line, start in zip(lines, FOUND, strict=False))
    assert lines[-1].startswith("step talks: length alone predicts the label: of 20 pairs with answers of different")


def test_a_row_is_named_by_its_number_its_prompt_and_its_answers(session: Session) -> None:
    """What is left of an answer is the last character that the template has written."""
    (line,) = re.findall(r"checks of the data: (step lost: .*)", session.train.log_text)
    assert re.search(r"\d+ \(prompt 'user (explain|describe|what|why|compare).*?', chosen '>', rejected '", line)
    assert re.search(r"chosen 'user \[\[dummy_message\]\]<\|im_end\|><\|im_st…', rejected", line)
    assert re.search(r", rejected '>'\)", line)


def test_counts_are_kept_with_the_run_and_in_its_report(session: Session) -> None:
    kept = json.loads((session.out / "sdpo/data_checks.json").read_text(encoding="utf-8"))
    report = read_report(session.out)
    assert {"schema_version": 1, **report["data_checks"]} == kept
    found = [source["found"].items() for source in kept["sources"]]
    counts = [{kind: of["num_rows"] for kind, of in kinds if of["num_rows"]} for kinds in found]
    intel = {"identical": 1, "empty": 1, "duplicates": 1, "contradictory": 2}
    assert counts == [{"lost": 3}, intel, {"other_prompts": 2}]
    assert kept["sources"][2]["found"]["other_prompts"] == {"num_rows": 2, "rows": [0, 8], "of": 20}
    assert [warning.split(" have ")[0] for warning in report["warnings"]][:2] == [
        "step lost: 3 of 10 pairs (30.0%)",
        "step intel: 1 of 10 pairs (10.0%)",
    ]


def test_lost_answers_are_refused_before_training_with_the_remedy(session: Session) -> None:
    """What else was found is told, and is not refused."""
    message = refused(
        session.refused,
        session.refused_out,
        *("step lost: 3 of 10 pairs (30.0%) have an answer that lost its content", "A single one is refused."),
        *("Strip the white space around the answers", "set sdpo.check_data: warn."),
    )
    assert "intel" not in message
    assert told(session.refused.log_text)[:6] == told(session.train.log_text)[:6]
    assert not (session.refused_out / "sdpo/data_checks.json").exists()


def test_ranks_do_not_wait_for_each_other_over_tokens_of_the_users_own(
    host: Host, model: Path, two_sets: list[Config], tmp_path: Path
) -> None:
    """With these the host's tokenizer is loaded by all ranks together, or by none."""
    own = {"added_tokens_overrides": {4: "<|review|>"}, "micro_batch_size": 2, "max_steps": 1}
    path = write_config(tmp_path / "config.yaml", sdpo_config(base_config(model, two_sets, tmp_path, **own)))
    host.run(["preprocess", str(path)], tmp_path).check()  # the host's own ranks wait for ever where one prepares them
    result = host.train(path, ranks=2).check()
    assert "checks of the data: nothing was found" in result.log_text
