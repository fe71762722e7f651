"""The model card of M_t: a README.md as the hub reads it, out of the content of a report.

A pure function of a report that may be of a run under way, dead or damaged: what is not known is a dash or left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from sdpo_plugin.report.published import BaseModel, shown, shown_config
from sdpo_plugin.report.view import number

TAGS = ("stepwise-dpo", "dpo", "trl", "axolotl", "generated_from_trainer")
ADAPTERS = {"lora": "LoRA", "qlora": "QLoRA"}
SDPO, DPO = "https://arxiv.org/abs/2403.19270", "https://arxiv.org/abs/2305.18290"
IN_HAND = ("training", "trained", "exported")  # states of a step from which on the policy is M_t
WORDS = (
    f"Each step is a run of [DPO]({DPO}) on its own preference pairs. Mean γ_ref: log-prob of the chosen less that of "
    "the rejected answer under the step's reference, in nats, on the step's pairs before it begins. Accuracy: the "
    "share of held-out pairs to whose chosen answer the model gives the higher log-prob."
)
CITATION = """\
```bibtex
@misc{kim2024sdpo,
  title         = {sDPO: Don't Use Your Data All at Once},
  author        = {Kim, Dahyun and Kim, Yungi and Song, Wonho and Kim, Hyeonwoo and Kim, Yunsu and Kim, Sanghoon and Park, Chanjun},
  year          = {2024},
  eprint        = {2403.19270},
  archivePrefix = {arXiv}
}

@inproceedings{rafailov2023direct,
  title     = {Direct Preference Optimization: Your Language Model is Secretly a Reward Model},
  author    = {Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Manning, Christopher D. and Ermon, Stefano and Finn, Chelsea},
  booktitle = {Advances in Neural Information Processing Systems 36},
  year      = {2023},
  eprint    = {2305.18290}
}
```"""  # noqa: E501 (one name list a line, as BibTeX is copied)


@dataclass(frozen=True)
class CardFacts:
    """What a card says besides the report.

    Attributes:
        name: of the final model: that of its repository, or of the output directory.
        base: M_0.
        adapter: "lora", "qlora", …; "" for full weights.
        on_hub: data sets and models as the report names them, and the hub id of each that is there.
        config: as the user has written it.
        plugin_version: of this package.
        figures: paths of pictures below the directory of the card.
        links: the run in the loggers' own pages, by the name of the logger.
    """

    name: str
    base: BaseModel
    adapter: str = ""
    on_hub: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    plugin_version: str = ""
    figures: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)


def model_in_hand(report: Mapping[str, Any]) -> int:
    """t of the model that the policy is, or is becoming, where the run stands."""
    return max((step["index"] for step in report["steps"] if step["state"] in IN_HAND), default=0)


def model_card(report: Mapping[str, Any], index: int, facts: CardFacts) -> str:
    """The card of M_t.

    Args:
        report: as ``build_report`` makes it; its steps after t are left out.
        index: t, from 1.
        facts: what the report does not know.
    """
    assert 1 <= index <= len(report["steps"])
    steps = report["steps"][:index]
    parts = [
        f"---\n{_yaml(_front_matter(steps, facts))}---",
        f"# {facts.name}" + ("" if index == len(report["steps"]) else f", M_{index} ({steps[-1]['name']})"),
        _what_it_is(report, index, facts),
        *_state(report, index),
        "## Lineage",
        _lineage(report, index, facts),
        "## Steps",
        _markdown_table(list(_steps(report, index, facts))),
        WORDS,
        *_not_computed(report, index),
    ]
    if facts.figures:
        parts += ["## Figures", "\n\n".join(f"![{_caption(path)}]({path})" for path in facts.figures)]
    if facts.links:
        parts += ["## The run", "\n".join(f"- [{name}]({url})" for name, url in facts.links.items())]
    if facts.config:
        parts += ["## Configuration", _config(facts.config)]
    parts += ["## Versions", "\n".join(_versions(report, facts)), "## Citation", CITATION]
    return "\n\n".join(parts) + "\n"


def _front_matter(steps: Sequence[Mapping[str, Any]], facts: CardFacts) -> dict[str, Any]:
    """The metadata that the hub indexes.

    An adapter fits its own base model alone; of a local base whose origin is known the model is a finetune of that.
    """
    data: dict[str, Any] = {}
    if facts.base.hub_id:
        data["base_model"] = facts.base.hub_id
        data["base_model_relation"] = "adapter" if facts.adapter and facts.base.is_on_hub else "finetune"
    data |= {"library_name": "peft" if facts.adapter else "transformers", "pipeline_tag": "text-generation"}
    data |= facts.base.license
    datasets = [facts.on_hub[name] for step in steps for name in step["sources"] if name in facts.on_hub]
    if datasets:
        data["datasets"] = list(dict.fromkeys(datasets))
    return {**data, "tags": [*TAGS, *([facts.adapter] if facts.adapter else [])]}


def _what_it_is(report: Mapping[str, Any], index: int, facts: CardFacts) -> str:
    what = f"The {ADAPTERS.get(facts.adapter, facts.adapter)} adapter" if facts.adapter else "The model"
    where = f"after step {index} of {len(report['steps'])}"
    return (
        f"{what} {where} of stepwise direct preference optimization (sDPO, [arXiv 2403.19270]({SDPO})) of "
        f"{_base(facts.base)}. Trained with [Axolotl](https://github.com/axolotl-ai-cloud/axolotl) and "
        "[TRL](https://github.com/huggingface/trl)."
    )


def _base(base: BaseModel) -> str:
    linked = f"[{base.hub_id}](https://huggingface.co/{base.hub_id})"
    if base.is_on_hub:
        return linked
    return f"the local model `{base.name}`" + (f", which was made from {linked}" if base.hub_id else "")


def _state(report: Mapping[str, Any], index: int) -> Iterator[str]:
    step = report["steps"][index - 1]
    if step["state"] == "training":
        yield f"**Not finished:** step {index} ({step['name']}) was being trained when this card was written."


def _lineage(report: Mapping[str, Any], index: int, facts: CardFacts) -> str:
    """M_0 and the models on the way from it to M_t: all before it, or none where each step begins from M_0."""
    way = [index]
    while way[0]:
        way.insert(0, report["models"].index(report["steps"][way[0] - 1]["policy_init"]))
    chain = " → ".join(f"**M_{t}**" if t == index else f"M_{t}" for t in way)
    lines = [f"- M_0: {_base(facts.base)}"]
    for t, step in enumerate(report["steps"][:index], 1):
        reference = step["reference"]
        reference = reference if reference in report["models"] else f"`{shown(reference, facts.on_hub)}`"
        lines.append(f"- M_{t} ({step['name']}): trained from {step['policy_init']}, with {reference} as reference")
    return "\n".join([f"{chain}\n", *lines])


def _steps(report: Mapping[str, Any], index: int, facts: CardFacts) -> Iterator[Sequence[str]]:
    """A line for M_0 where it has accuracies, then one a step."""
    sets, accuracy = report["heldout"]["sets"], report["heldout"]["reference_free_accuracy"]
    yield (
        *("model", "step", "data", "rows", "updates", "β", "learning rate", "mean γ_ref", "first loss", "last loss"),
        *(f"accuracy on {shown(name, {})}" for name in sets),
    )
    if sets:
        yield "M_0", *[""] * 9, *(number(value, ".3f") for value in accuracy[0])
    for t, step in enumerate(report["steps"][:index], 1):
        yield (
            f"M_{t}",
            step["name"],
            ", ".join(shown(source, facts.on_hub) for source in step["sources"]),
            f"{step['num_rows']:,}",
            number(step["num_optimizer_steps"], ","),
            number(step["beta"], "g"),
            number(step["learning_rate"], "g"),
            number((step["gamma_ref"] or {"mean": None})["mean"], "+.2f"),
            number(step["first_loss"], ".4f"),
            number(step["final_loss"], ".4f"),
            *(number(value, ".3f") for value in accuracy[t]),
        )


def _not_computed(report: Mapping[str, Any], index: int) -> Iterator[str]:
    """M_t meets the held-out sets after it has been written, and its card with it."""
    if None in report["heldout"]["reference_free_accuracy"][index]:
        yield f"The accuracy of M_{index} on held-out pairs was not computed yet when this card was written."


def _config(config: Mapping[str, Any]) -> str:
    text = _yaml(shown_config(config))
    fence = "~~~" if "```" in text else "```"
    return f"<details><summary>The config of the run</summary>\n\n{fence}yaml\n{text}{fence}\n\n</details>"


def _versions(report: Mapping[str, Any], facts: CardFacts) -> Iterator[str]:
    if facts.plugin_version:
        yield f"- axolotl-sdpo: {facts.plugin_version}"
    for package, version in report["versions"].items():
        yield f"- {package}: {version}"


def _caption(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0].replace("_", " ").replace("-", " ")


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(rows[0]), "|---" * len(rows[0]) + "|", *map(line, rows[1:])])


def _yaml(value: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)
    return text
