"""The model card of M_t, of finished runs, of dead ones and of damaged ones."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdpo_plugin.plan import StepPlan
from sdpo_plugin.report.build import build_report
from sdpo_plugin.report.card import CITATION, CardFacts, model_card, model_in_hand
from sdpo_plugin.report.published import BaseModel, is_hub_id, shown, shown_config
from sdpo_plugin.run_dir.paths import RunDir
from tests.fakes import CALLS, EXTERNAL, FakeHost, HostDiedError, make_plan, run

BASE = BaseModel("org/base", "org/base", {"license": "apache-2.0"})
LOCAL = BaseModel("my-sft", None)
FACTS = CardFacts(
    "aligned",
    BASE,
    on_hub={"org/pairs:train": "org/pairs"},
    config={"base_model": "org/base", "rl": "sdpo", "learning_rate": 5.0e-7, "adapter": None},
    plugin_version="0.1.0",
)

GOLDEN = f"""\
---
base_model: org/base
base_model_relation: finetune
library_name: transformers
pipeline_tag: text-generation
license: apache-2.0
datasets:
- org/pairs
tags:
- stepwise-dpo
- dpo
- trl
- axolotl
- generated_from_trainer
---

# aligned

The model after step 2 of 2 of stepwise direct preference optimization (sDPO, \
[arXiv 2403.19270](https://arxiv.org/abs/2403.19270)) of [org/base](https://huggingface.co/org/base). Trained with \
[Axolotl](https://github.com/axolotl-ai-cloud/axolotl) and [TRL](https://github.com/huggingface/trl).

## Lineage

M_0 → M_1 → **M_2**

- M_0: [org/base](https://huggingface.co/org/base)
- M_1 (step-1): trained from M_0, with M_0 as reference
- M_2 (step-2): trained from M_1, with M_1 as reference

## Steps

| model | step | data | rows | updates | β | learning rate | mean γ_ref | first loss | last loss | \
accuracy on val | accuracy on test |
|---|---|---|---|---|---|---|---|---|---|---|---|
| M_0 |  |  |  |  |  |  |  |  |  | 0.250 | 1.000 |
| M_1 | step-1 | org/pairs:train | 3 | 2 | 0.1 | 5e-07 | -4.00 | 0.6931 | 0.6000 | 0.750 | 0.000 |
| M_2 | step-2 | hard.jsonl:train | 4 | 3 | 0.1 | 2.5e-07 | +4.00 | 0.6931 | 0.5000 | 0.750 | 0.000 |

Each step is a run of [DPO](https://arxiv.org/abs/2305.18290) on its own preference pairs. Mean γ_ref: log-prob of the \
chosen less that of the rejected answer under the step's reference, in nats, on the step's pairs before it begins. \
Accuracy: the share of held-out pairs to whose chosen answer the model gives the higher log-prob.

## Configuration

<details><summary>The config of the run</summary>

```yaml
base_model: org/base
rl: sdpo
learning_rate: 5.0e-07
```

</details>

## Versions

- axolotl-sdpo: 0.1.0
- axolotl: 0.19.0
- trl: 1.9.0

## Citation

{CITATION}
"""


class Host(FakeHost):
    """Steps with learning rates of their own."""

    def settings(self, step: StepPlan) -> dict[str, Any]:
        return {**super().settings(step), "learning_rate": 5e-7 / step.index}


def plan_of(**options: Any) -> Any:
    """Step 1 on a data set of the hub, step 2 on a file of somebody's."""
    plan = make_plan(**options)
    sources = (("org/pairs:train",), ("/home/somebody/secret/hard.jsonl:train",))
    steps = [dataclasses.replace(step, sources=own) for step, own in zip(plan.steps, sources, strict=True)]
    return dataclasses.replace(plan, steps=tuple(steps))


def report_of(run_dir: RunDir, host: FakeHost | None = None, **options: Any) -> dict[str, Any]:
    run(host or Host(), run_dir, plan_of(**options))
    report = build_report(run_dir)
    return {**report, "versions": {"axolotl": "0.19.0", "trl": "1.9.0"}}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A finished run of two steps, for tests that only look."""
    return report_of(RunDir(tmp_path_factory.mktemp("finished") / "out"))


def front_matter(card: str) -> dict[str, Any]:
    """As the hub reads it."""
    assert card.startswith("---\n")
    data: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return data


def steps_of(card: str) -> list[list[str]]:
    """The lines of the table of steps, by cell."""
    lines = [line for line in card.splitlines() if line.startswith("| M_")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# --- a finished run ---


def test_card_of_the_final_model(report: dict[str, Any]) -> None:
    assert model_card(report, 2, FACTS) == GOLDEN


def test_card_of_an_earlier_model_ends_with_it(report: dict[str, Any]) -> None:
    card = model_card(report, 1, FACTS)
    assert "\n# aligned, M_1 (step-1)\n" in card
    assert "The model after step 1 of 2 of stepwise" in card
    assert "\nM_0 → **M_1**\n" in card
    assert [line[0] for line in steps_of(card)] == ["M_0", "M_1"]
    assert front_matter(card)["datasets"] == ["org/pairs"]
    assert not re.search(r"M_2|step-2|hard", card)


def test_data_sets_of_later_steps_are_not_those_of_a_model(report: dict[str, Any]) -> None:
    """Of step 1 nothing is on the hub then."""
    facts = dataclasses.replace(FACTS, on_hub={"/home/somebody/secret/hard.jsonl:train": "org/hard"})
    assert "datasets" not in front_matter(model_card(report, 1, facts))
    assert front_matter(model_card(report, 2, facts))["datasets"] == ["org/hard"]


def test_steps_that_begin_from_the_base_are_no_chain(run_dir: RunDir) -> None:
    card = model_card(report_of(run_dir, policy_init="base"), 2, FACTS)
    assert "\nM_0 → **M_2**\n" in card
    assert "\n- M_1 (step-1): trained from M_0, with M_0 as reference\n" in card
    assert "\n- M_2 (step-2): trained from M_0, with M_1 as reference\n" in card


@pytest.mark.parametrize(
    ("on_hub", "named"), [({EXTERNAL: EXTERNAL}, "`org/reference`"), ({}, "`reference`")], ids=["hub", "local"]
)
def test_external_reference_is_named(run_dir: RunDir, on_hub: Mapping[str, str], named: str) -> None:
    report = report_of(run_dir, Host(early=[EXTERNAL]), reference=EXTERNAL)
    card = model_card(report, 1, dataclasses.replace(FACTS, on_hub=on_hub))
    assert f"\n- M_1 (step-1): trained from M_0, with {named} as reference\n" in card


# --- what the hub reads ---


@pytest.mark.parametrize(
    ("base", "adapter", "expected"),
    [
        (BASE, "", {"base_model": "org/base", "base_model_relation": "finetune", "library_name": "transformers"}),
        (BASE, "qlora", {"base_model": "org/base", "base_model_relation": "adapter", "library_name": "peft"}),
        # An adapter of a model that was made from org/base does not fit org/base itself.
        (
            BaseModel("my-sft", "org/base"),
            "lora",
            {"base_model": "org/base", "base_model_relation": "finetune", "library_name": "peft"},
        ),
        (LOCAL, "lora", {"library_name": "peft"}),
    ],
    ids=["full", "adapter", "adapter-of-a-local-finetune", "local"],
)
def test_lineage_for_the_hub(
    report: dict[str, Any], base: BaseModel, adapter: str, expected: Mapping[str, str]
) -> None:
    found = front_matter(model_card(report, 2, dataclasses.replace(FACTS, base=base, adapter=adapter)))
    keys = ("base_model", "base_model_relation", "library_name")
    assert {key: found[key] for key in keys if key in found} == expected
    assert (adapter in found["tags"]) is bool(adapter)


def test_license_is_the_base_s_and_never_guessed(report: dict[str, Any]) -> None:
    own = {"license": "other", "license_name": "x-1.0", "license_link": "https://host/license"}
    with_license = dataclasses.replace(FACTS, base=BaseModel("org/base", "org/base", own))
    found = front_matter(model_card(report, 2, with_license))
    assert {key: found[key] for key in own} == own
    assert "licen" not in model_card(report, 2, dataclasses.replace(FACTS, base=LOCAL))


def test_hub_s_own_reader_takes_it(report: dict[str, Any]) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    card = huggingface_hub.ModelCard(model_card(report, 2, FACTS))
    assert (card.data.base_model, card.data.license, card.data.datasets) == ("org/base", "apache-2.0", ["org/pairs"])
    assert card.data.to_dict()["base_model_relation"] == "finetune"
    assert card.text.startswith("\n# aligned\n")


# --- what is left out ---


def test_figures_and_links_stand_in_the_card_where_there_are_some(report: dict[str, Any]) -> None:
    assert "## Figures" not in GOLDEN
    facts = dataclasses.replace(
        FACTS, figures=["sdpo/gamma_ref.png", "sdpo/loss.png"], links={"Comet": "https://comet/run"}
    )
    card = model_card(report, 2, facts)
    assert "\n## Figures\n\n![gamma ref](sdpo/gamma_ref.png)\n\n![loss](sdpo/loss.png)\n" in card
    assert "\n## The run\n\n- [Comet](https://comet/run)\n" in card


def test_nothing_of_somebody_s_machine_is_published(report: dict[str, Any]) -> None:
    config = {"base_model": "/home/somebody/secret/my-sft", "datasets": [{"path": "/home/somebody/secret/hard.jsonl"}]}
    card = model_card(report, 2, dataclasses.replace(FACTS, base=LOCAL, config=config))
    assert "of the local model `my-sft`. Trained with" in card
    assert "base_model: my-sft\ndatasets:\n- path: hard.jsonl\n" in card
    assert not re.search("somebody|secret", card)
    assert "base_model" not in front_matter(card)


def test_local_base_says_what_it_was_made_from(report: dict[str, Any]) -> None:
    card = model_card(report, 2, dataclasses.replace(FACTS, base=BaseModel("my-sft", "org/base")))
    origin = "the local model `my-sft`, which was made from [org/base](https://huggingface.co/org/base)"
    assert f"\n- M_0: {origin}\n" in card


def test_a_name_cannot_break_the_table(report: dict[str, Any]) -> None:
    steps = [{**report["steps"][0], "sources": ["a|b\nc.jsonl"]}, report["steps"][1]]
    assert "| step-1 | a\\|b c.jsonl | 3 |" in model_card({**report, "steps": steps}, 1, FACTS)


def test_config_with_code_in_it_is_fenced_otherwise(report: dict[str, Any]) -> None:
    card = model_card(report, 2, dataclasses.replace(FACTS, config={"chat_template_jinja": "```{{ x }}```"}))
    assert "\n~~~yaml\nchat_template_jinja: '```{{ x }}```'\n~~~\n" in card


# --- dead and damaged runs ---


def dead(run_dir: RunDir, call: str) -> dict[str, Any]:
    with pytest.raises(HostDiedError):
        report_of(run_dir, Host(dies_in=call))
    return build_report(run_dir)


@pytest.mark.parametrize("call", ["export M_1 to staging", "export M_2 to staging"])
def test_card_of_a_model_that_is_exported_lacks_its_own_held_out_accuracy(run_dir: RunDir, call: str) -> None:
    report = dead(run_dir, call)
    index = model_in_hand(report)
    card = model_card(report, index, FACTS)
    assert index == int(call[9])
    *_, before, last = steps_of(card)
    assert (before[-2:], last[-2:]) == ([["0.250", "1.000"], ["0.750", "0.000"]][index - 1], ["–", "–"])
    assert f"The accuracy of M_{index} on held-out pairs was not computed yet when this card was written." in card
    assert "**Not finished" not in card


def test_card_beside_a_checkpoint_says_that_the_step_is_under_way(run_dir: RunDir) -> None:
    report = dead(run_dir, "train M_1 on D_2")
    card = model_card(report, model_in_hand(report), FACTS)
    assert "**Not finished:** step 2 (step-2) was being trained when this card was written." in card
    # β, losses and updates are known when it is trained
    assert steps_of(card)[-1][4:10] == ["–", "–", "2.5e-07", "+4.00", "–", "–"]


@pytest.mark.parametrize("call", CALLS[1:])
def test_there_is_a_card_wherever_a_run_dies(run_dir: RunDir, call: str) -> None:
    """Of every model that the policy is or is becoming; M_0 has a card of its own."""
    report = dead(run_dir, call)
    trained = [name for name in CALLS[: CALLS.index(call) + 1] if name.startswith("train ")]
    assert model_in_hand(report) == len(trained)
    for index in range(1, len(trained) + 1):
        assert "None" not in model_card(report, index, FACTS)


def test_missing_tables_cost_their_numbers(run_dir: RunDir) -> None:
    report_of(run_dir)
    for path in (*run_dir.folder.glob("reference/*"), *run_dir.folder.glob("heldout/*")):
        path.unlink()
    card = model_card(build_report(run_dir), 2, FACTS)
    assert [line[7] for line in steps_of(card)] == ["", "–", "–"]
    assert [line[-2:] for line in steps_of(card)] == [["–", "–"]] * 3


def test_run_without_held_out_sets_has_no_accuracies(run_dir: RunDir) -> None:
    card = model_card(report_of(run_dir, heldout={}), 2, FACTS)
    assert [line[0] for line in steps_of(card)] == ["M_1", "M_2"]
    assert "not computed" not in card


def test_nobody_is_called_none(report: dict[str, Any]) -> None:
    bare = CardFacts("aligned", LOCAL, config={"adapter": None, "sdpo": {"partition": None}, "nothing": [None]})
    for index in (1, 2):
        assert not re.search(r"\b[Nn]one\b", model_card(report, index, bare))


# --- what may be published ---


def test_config_as_it_may_be_published() -> None:
    config = {
        "base_model": "/models/base/",
        "hub_token": "hf_secret",
        "plugins": ["sdpo_plugin.SDPOPlugin"],
        "datasets": [{"path": "s3://me:hush@bucket/prefs.jsonl"}, {"path": "https://me:hush@host/prefs.jsonl?key=1"}],
        "output_dir": "./out",
        "deepspeed": r"C:\configs\zero3.json",
        "wandb_project": "internal",
        "axolotl_config_path": "/home/me/config.yaml",
        "special_tokens": {"bos_token": "<s>"},
        "val_set_size": 0.1,
        "bf16": False,
        "seed": None,
        "started": Path("/home/me/x"),
    }
    assert shown_config(config) == {
        "base_model": "base",
        "plugins": ["sdpo_plugin.SDPOPlugin"],
        "datasets": [{"path": "prefs.jsonl"}, {"path": "https://host/prefs.jsonl"}],
        "output_dir": "./out",
        "deepspeed": "zero3.json",
        "special_tokens": {"bos_token": "<s>"},
        "val_set_size": 0.1,
        "bf16": False,
        "started": "x",
    }
    json.dumps(shown_config(config))


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("org/pairs", True),
        ("HuggingFaceH4/ultrafeedback_binarized", True),
        ("json", False),
        ("./pairs", False),
        ("/data/pairs", False),
        ("a/b/c", False),
        ("s3://bucket", False),
        ("org/pa..irs", False),
        (None, False),
    ],
)
def test_form_of_a_hub_id(name: object, is_one: bool) -> None:
    assert is_hub_id(name) is is_one


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("org/pairs:train", "org/pairs:train"),
        ("data/pairs.jsonl:train", "pairs.jsonl:train"),
        ("gs://bucket/a/pairs.jsonl", "pairs.jsonl"),
        ("https://host/a/pairs.jsonl", "https://host/a/pairs.jsonl"),
        ("val", "val"),
    ],
)
def test_data_sets_as_they_are_shown(name: str, told: str) -> None:
    assert shown(name, FACTS.on_hub) == told
