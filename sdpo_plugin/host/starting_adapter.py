"""`lora_model_dir`: an adapter that M_0 has, read into the one that the host has made afresh.

Under preference training the host takes the adapter's config alone, and leaves its weights unread.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from axolotl.utils.dict import DictDefault
from axolotl.utils.distributed import is_main_process
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from transformers.utils import cached_file

from sdpo_plugin import digests
from sdpo_plugin.errors import ConfigError
from sdpo_plugin.host.engines.weights import load_adapter

LOG = logging.getLogger("axolotl.sdpo_plugin")
# What the config of an adapter and the host's keys have to agree in, where weights alone would not tell; and with what
# both mean where they say nothing.
SHARED: dict[str, tuple[str, Any]] = {
    "r": ("lora_r", None),
    "lora_alpha": ("lora_alpha", None),
    "use_dora": ("peft_use_dora", False),
    "use_rslora": ("peft_use_rslora", False),
    "rank_pattern": ("lora_rank_pattern", {}),
    "alpha_pattern": ("lora_alpha_pattern", {}),
    "modules_to_save": ("lora_modules_to_save", []),
}


def starting_adapter(cfg: DictDefault) -> Path | None:
    """The directory of the adapter that the run starts from, in the cache of the hub where it comes from there; None:
    none is asked for.

    Raises:
        ConfigError: there is no adapter.
    """
    if not cfg.lora_model_dir:
        return None
    name = str(cfg.lora_model_dir)
    if Path(name).is_dir():
        return Path(name)
    try:
        config = cached_file(name, CONFIG_NAME)
        cached_file(name, SAFETENSORS_WEIGHTS_NAME)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"lora_model_dir: {name!r} is no directory, and no adapter of a hub that can be read: "
            f"{' '.join(str(error).split())}; set the directory that an adapter was saved to."
        ) from error
    return Path(config).parent


def facts_of_adapter(cfg: DictDefault) -> dict[str, Any]:
    """What tells the adapter that a run starts from: what it holds, not where it lies. Empty where there is none."""
    directory = starting_adapter(cfg)
    if directory is None:
        return {}
    files = [directory / name for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)]
    return {"content of the adapter": digests.of_samples([path for path in files if path.is_file()])}


def require_fitting_adapter(cfg: DictDefault) -> None:
    """Refuse an adapter that is not the one that the config describes; nothing is loaded yet.

    Raises:
        ConfigError: there is none, it is not LoRA's, or it has another rank, scale or kind.
    """
    directory = starting_adapter(cfg)
    if directory is None:
        return
    saved = _config_of(directory, cfg)
    if saved.get("peft_type") != "LORA":
        raise ConfigError(
            f"lora_model_dir: {str(cfg.lora_model_dir)!r} holds an adapter of type {saved.get('peft_type')!r}, and "
            f"adapter: {cfg.adapter!r} trains one of type 'LORA'; set another lora_model_dir."
        )
    found = list(_differences(saved, cfg))
    if found:
        raise ConfigError(f"lora_model_dir: {str(cfg.lora_model_dir)!r} holds another adapter: {'; '.join(found)}.")


def load_starting_adapter(model: PeftModel, cfg: DictDefault) -> None:
    """Make the adapter of ``model`` the one that the run starts from, on every rank. No engine may be alive.

    Raises:
        ConfigError: it stands in other modules than the config's, or is made for another model.
    """
    directory = starting_adapter(cfg)
    if directory is None:
        return
    ours = {name: tuple(weight.shape) for name, weight in get_peft_model_state_dict(model).items() if "lora_" in name}
    weights = load_peft_weights(str(directory), device="cpu")
    theirs = {name: tuple(weight.shape) for name, weight in weights.items() if "lora_" in name}
    if ours.keys() != theirs.keys():
        saved = _modules(_config_of(directory, cfg).get("target_modules"))
        raise ConfigError(
            f"lora_model_dir: {str(cfg.lora_model_dir)!r} has weights for the modules {saved}, and the adapter of the "
            f"config is for {_modules(model.peft_config['default'].target_modules)}: "
            f"{len(ours.keys() - theirs.keys())} weights are missing there and {len(theirs.keys() - ours.keys())} "
            f"unknown here, e.g. {min(ours.keys() ^ theirs.keys())}; set lora_target_modules to those of the adapter, "
            "and remove lora_target_linear."
        )
    # ZeRO-3 shows a weight that it has sharded without elements.
    wrong = [name for name, shape in ours.items() if 0 not in shape and shape != theirs[name]]
    if wrong:
        raise ConfigError(
            f"lora_model_dir: {str(cfg.lora_model_dir)!r} was made for another model than base_model: "
            f"{str(cfg.base_model)!r}: {wrong[0]} has shape {theirs[wrong[0]]} there and {ours[wrong[0]]} here; set "
            "the base_model that the adapter was trained on."
        )
    load_adapter(model, directory)
    if is_main_process():
        LOG.info("M_0: base_model with the adapter of lora_model_dir: %s", cfg.lora_model_dir)


def _config_of(directory: Path, cfg: DictDefault) -> Mapping[str, Any]:
    try:
        found = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"lora_model_dir: {str(cfg.lora_model_dir)!r} has no {CONFIG_NAME} that can be read ({error}); set the "
            "directory that an adapter was saved to."
        ) from error
    return found if isinstance(found, Mapping) else {}


def _differences(saved: Mapping[str, Any], cfg: DictDefault) -> Iterator[str]:
    for key, (name, unset) in SHARED.items():
        found = saved.get(key) or unset, cfg.get(name) or unset
        there, here = (sorted(value) if isinstance(value, list) else value for value in found)
        if there != here:
            yield f"its {key} is {there!r}, and {name} is {here!r}; set {name}: {json.dumps(there)}"


def _modules(targets: Any) -> Any:
    return targets if targets is None or isinstance(targets, str) else sorted(targets)
