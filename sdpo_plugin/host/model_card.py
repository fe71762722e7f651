"""Model cards: this package's, in the place of those that TRL, PEFT and the hub's template would write.

Who writes a README.md on this host: TRL with every checkpoint, into the directory above it, and where the final model
is written or pushed (`create_model_card`); PEFT beside every adapter (`save_pretrained`). TRL's names the base "None"
where that was read from a directory, PEFT's has the directory's path. The trainer writes this one after each of them.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from axolotl.utils.dict import DictDefault
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.repocard import metadata_load
from transformers.utils import CONFIG_NAME
from trl.trainer import base_trainer

from sdpo_plugin import __version__
from sdpo_plugin.errors import OutputError
from sdpo_plugin.host.data.read_errors import source_name
from sdpo_plugin.report.build import build_report
from sdpo_plugin.report.card import CardFacts, model_card, model_in_hand
from sdpo_plugin.report.published import BaseModel, is_hub_id
from sdpo_plugin.run_dir.files import explaining_write_errors, write_bytes
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.sealed import CARD
from sdpo_plugin.scrub import last_part

LOG = logging.getLogger("axolotl.sdpo_plugin")
SNAPSHOT = re.compile(r".*/models--([^/]+)--([^/]+)/snapshots/[^/]+/?")  # in the hub's cache
LICENSE = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class ModelCards:
    """Writes the cards of a run.

    Attributes:
        run: the run directory.
        facts: of every card.
    """

    run: RunDir
    facts: CardFacts

    @classmethod
    def of(cls, cfg: DictDefault, written: Mapping[str, Any]) -> "ModelCards":
        """The cards of the run of a config.

        Args:
            cfg: the host's config.
            written: what the user has written of it, with the options of the command line.
        """
        name = cfg.hub_model_id or Path(cfg.output_dir).resolve()
        facts = CardFacts(
            last_part(str(name)), base_of(cfg), cfg.adapter or "", on_hub(cfg), written, plugin_version=__version__
        )
        return cls(RunDir(Path(cfg.output_dir)), facts)

    def write(self, directory: Path) -> None:
        """Write the card of the model that the policy is, or is becoming. For rank 0.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            report = build_report(self.run)
        except OutputError as error:  # somebody has removed the records; the model itself is whole
            LOG.warning("%s gets no model card: %s", directory, error)
            return
        index = model_in_hand(report)
        if not index:
            return
        figures = self._figures() if directory.resolve() == self.run.root.resolve() else []
        facts = replace(self.facts, figures=figures, links=dict(links()))
        with explaining_write_errors(directory / CARD):
            write_bytes(directory / CARD, model_card(report, index, facts).encode())

    def _figures(self) -> list[str]:
        """Beside the final model alone: a card can show what is pushed with it, and no more."""
        return [path.relative_to(self.run.root).as_posix() for path in sorted(self.run.folder.glob("*.png"))]


def base_of(cfg: DictDefault) -> BaseModel:
    """M_0, by a name that may be published, with its licence where its own card is on disk."""
    place = str(cfg.base_model)
    directory = Path(place)
    snapshot = SNAPSHOT.fullmatch(directory.resolve().as_posix() if directory.is_dir() else "")
    if snapshot is None and directory.is_dir():
        own = _front_matter(directory / CARD)
        return BaseModel(last_part(str(directory.resolve())), _origin(directory, own), _license(own))
    name = "/".join(snapshot.groups()) if snapshot else place
    card = directory / CARD if snapshot else try_to_load_from_cache(name, CARD, revision=cfg.revision_of_model)
    own = _front_matter(Path(card)) if isinstance(card, str | Path) else {}
    return BaseModel(name, name, _license(own, name))


def on_hub(cfg: DictDefault) -> dict[str, str]:
    """The data sets and the external reference that are on the hub, as the report names them, with their hub ids."""
    found = {source_name(entry): str(entry["path"]) for entry in cfg.datasets or []}
    reference = (cfg.sdpo or {}).get("reference")
    found |= {reference: reference} if reference else {}
    return {name: path for name, path in found.items() if is_hub_id(path) and not os.path.lexists(path)}


def links() -> Iterator[tuple[str, str]]:
    """The pages of this run in the loggers that have some; none of them is imported for the question."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None and wandb.run.url:
        yield "Weights & Biases", wandb.run.url
    asked = (
        ("Comet", "comet_ml", base_trainer.get_comet_experiment_url),
        ("Trackio", "trackio", base_trainer.get_trackio_space_url),
    )
    for name, module, ask in asked:
        url = ask() if module in sys.modules else None
        if url:
            yield name, url


def _origin(directory: Path, card: Mapping[str, Any]) -> str | None:
    """The model on the hub that a local one says it was made from: in its card, else in its config."""
    named = card.get("base_model")
    candidates: list[Any] = [named[0] if isinstance(named, list) and named else named]
    with suppress(OSError, ValueError, AttributeError):  # the host has read it, or refused it
        candidates.append(json.loads((directory / CONFIG_NAME).read_bytes()).get("_name_or_path"))
    return next((name for name in candidates if is_hub_id(name) and not os.path.lexists(name)), None)


def _license(card: Mapping[str, Any], hub_id: str = "") -> dict[str, str]:
    found = {key: card[key] for key in LICENSE if isinstance(card.get(key), str)}
    link = found.get("license_link", "")
    if link and "://" not in link:  # a file beside the base's card
        found |= {"license_link": f"https://huggingface.co/{hub_id}/blob/main/{link}"}
        if not hub_id:
            del found["license_link"]
    return found


def _front_matter(card: Path) -> dict[str, Any]:
    """The metadata of somebody's card; empty where there are none that can be read."""
    try:
        return metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
