"""Kill −9 at moments spread over the whole life of a run; the resumed run ends with the bits of an uninterrupted one.

The moments are events inside of the run (a forward pass, a file that is opened, renamed or removed), drawn with a
fixed seed from all that an uninterrupted run of the same config has.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from integration_tests.harness.compare import apart, at_once
from integration_tests.harness.data import Config, base_config, chat_set, intel_set, lora_config
from integration_tests.harness.deaths import Life, live, outcome, read_plan
from integration_tests.harness.launch import Host
from integration_tests.harness.zero3 import write_zero3

SAVES = {"num_epochs": 2, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 1}
HELDOUT = {"val_set_size": 0.2, "eval_strategy": "steps", "eval_steps": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this module's runs and data."""
    return tmp_path_factory.mktemp("death")


@pytest.fixture(scope="module")
def sets(folder: Path) -> list[Config]:
    """Three steps of 12, 16 and 12 rows."""
    return [
        chat_set(folder / "d1.jsonl", 12, 1),
        intel_set(folder / "d2.jsonl", 16, 2),
        chat_set(folder / "d3.jsonl", 12, 3),
    ]


@pytest.fixture(scope="module")
def full(host: Host, model: Path, sets: list[Config], folder: Path) -> Life:
    """Full fine-tuning with AdamW, held-out rows, and one checkpoint kept."""
    return live(host, base_config(model, sets, folder / "full", **SAVES | HELDOUT))


@pytest.mark.parametrize(
    ("kind", "number"),
    [("reference pass", 2), ("training", 3), ("checkpoint", 3), ("export", 2), ("bookkeeping", 1), ("final save", 1)],
)
def test_killed_anywhere_ends_with_the_same_bits(full: Life, tmp_path: Path, kind: str, number: int) -> None:
    """Twelve deaths of a full fine-tuning run in one process; tests/test_death.py dies in every file operation."""
    expected = outcome(full.host, full.out)

    def once(event: int) -> None:
        config = full.die(tmp_path / str(event), event)
        assert outcome(full.host, full.resume(config)) == expected, f"killed at {event}: {full.events[event - 1]}"

    at_once(*[lambda event=event: once(event) for event in full.moments(kind, number)])


def test_killed_again_while_it_is_resumed(full: Life, tmp_path: Path) -> None:
    """Four deaths in a row: each process gets a little further."""
    events = [20, 25, 40, 60]
    config = full.die(tmp_path, *events)
    assert outcome(full.host, full.resume(config)) == outcome(full.host, full.out)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("base", {"sdpo": {"policy_init": "base", "reference": "base"}}),
        ("base-start", {"sdpo": {"policy_init": "base"}}),
        ("by-difficulty", {"sdpo": {"partition": {"strategy": "easy_to_hard", "unit": "row", "num_steps": 2}}}),
        (
            "best-model",
            {
                **HELDOUT,
                "early_stopping_patience": 1,
                "learning_rate": 2.0e-2,
                "save_total_limit": None,
            },
        ),
        ("last-only", {"sdpo": {"export_steps": "last"}, "save_strategy": "no", "save_steps": None}),
    ],
)
def test_killed_under_other_settings(
    host: Host, model: Path, sets: list[Config], folder: Path, name: str, overrides: Config
) -> None:
    """A death in each part of the life of runs that keep other things in memory."""
    config = base_config(model, sets, folder / name, **SAVES)
    life = live(host, config | {"dataset_prepared_path": str(folder / "prepared")}, **overrides)
    expected = outcome(host, life.out)

    def once(event: int) -> None:
        dead = life.die(folder / name / str(event), event)
        assert outcome(host, life.resume(dead)) == expected, f"killed at {event}: {life.events[event - 1]}"

    moments = [event for kind in ("reference pass", "training", "export") for event in life.moments(kind, 1, seed=1)]
    at_once(*[lambda event=event: once(event) for event in moments])


def test_killed_after_early_stopping_had_ended_the_step(
    host: Host, model: Path, sets: list[Config], folder: Path, tmp_path: Path
) -> None:
    """Its last checkpoint says that it is over: not one update more is made, and the best model is exported."""
    often = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "save_total_limit": None, "val_set_size": 0.2}
    stops = {"early_stopping_patience": 1, "learning_rate": 5.0e-2, "num_epochs": 6}
    life = live(host, base_config(model, sets, folder / "stopped", **{**SAVES, **often, **stops}))
    expected = outcome(host, life.out)
    steps = expected["records"]
    planned = [step["num_optimizer_steps"] for step in read_plan(life.out)["steps"]]
    early = [i for i, step in enumerate(steps) if step["num_optimizer_steps"] < planned[i]]
    assert early, f"no step stopped early: {steps} of {planned}"
    exports = [i for i, what in enumerate(life.events, 1) if what.startswith("os.rename sdpo/staging/.sdpo_seal")]
    dead = life.die(tmp_path, exports[early[0]])
    assert outcome(host, life.resume(dead)) == expected


def test_lora_killed_anywhere(host: Host, model: Path, sets: list[Config], folder: Path) -> None:
    """The adapter is drawn without a seed, and every process here has another one: M_0's has to be kept."""
    life = live(host, lora_config(model, sets, folder / "lora", **SAVES))
    expected = outcome(host, life.out)
    kinds = ("reference pass", "training", "checkpoint", "export")
    moments = [event for kind in kinds for event in life.moments(kind, 2, 1) if event > life.prepared]

    def once(event: int) -> None:
        dead = life.die(folder / "lora" / str(event), event)
        assert outcome(host, life.resume(dead)) == expected, f"killed at {event}: {life.events[event - 1]}"

    at_once(*[lambda event=event: once(event) for event in moments])


def test_lora_with_the_base_adapter_at_every_start(host: Host, model: Path, sets: list[Config], folder: Path) -> None:
    """`policy_init: base`: step 3 begins with the adapter that the first of three processes drew."""
    life = live(host, lora_config(model, sets, folder / "lora-base", **SAVES), sdpo={"policy_init": "base"})
    first, second = life.moments("reference pass", 2, 2)
    dead = life.die(folder / "lora-base" / "dead", first, second - first)
    assert outcome(host, life.resume(dead)) == outcome(host, life.out)


@pytest.mark.parametrize(
    ("adapter", "kinds"),
    [(False, ("checkpoint", "export")), (True, ("training",))],
    ids=["full", "lora"],
)
def test_killed_under_zero3_on_two_ranks(
    host: Host, model: Path, sets: list[Config], folder: Path, adapter: bool, kinds: tuple[str, ...]
) -> None:
    """Rank 0 is killed, rank 1 ends because of it; sharded optimizer states, gathered exports."""
    make = lora_config if adapter else base_config
    name = "zero3-lora" if adapter else "zero3"
    shared = {"deepspeed": str(write_zero3(folder / "zero3.json")), "micro_batch_size": 2}
    life = live(host, make(model, sets, folder / name, **SAVES | shared), ranks=2)
    events = [event for kind in kinds for event in life.moments(kind, 1, 3)]
    for event in events:
        assert not adapter or event > life.prepared, "the process that resumes would draw another adapter"
        out = life.resume(life.die(folder / name / str(event), event))
        for step in ("step-1", "step-2", "step-3", ""):
            # Measured: 0.0. Sums over ranks are taken in a fixed order here; another machine may round otherwise.
            assert apart(out / step, life.out / step) <= 1e-6, f"killed at {event}: {life.events[event - 1]}"
