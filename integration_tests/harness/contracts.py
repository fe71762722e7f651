"""The promises of `host/compat.py`, tried in a child where the host may be broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _refusal(check: Callable[[], None]) -> str | None:
    """The message of the UnsupportedHostError that the check raises, or None."""
    from sdpo_plugin.errors import UnsupportedHostError

    try:
        check()
    except UnsupportedHostError as error:
        return str(error)
    return None


def installed_host() -> str | None:
    """Whether the installed host is refused, and why."""
    from sdpo_plugin.host import compat

    return _refusal(compat.require_supported_host) or _refusal(compat.require_supported_trainer)


def broken_symbols() -> list[dict[str, Any]]:
    """For each function relied on: the refusal when it is missing, when it takes one parameter more, and afterwards."""
    from sdpo_plugin.host import compat, relied_on
    from sdpo_plugin.host.contracts import Takes

    def check() -> str | None:
        return _refusal(compat.require_supported_host) or _refusal(compat.require_supported_trainer)

    def other(self: Any, surprise: Any) -> None: ...

    found = []
    for contract in (*relied_on.AT_REGISTRATION, *relied_on.of_the_trainers_classes()):
        if not isinstance(contract, Takes):
            continue
        owner, name, parameters = contract.owner, contract.name, contract.parameters
        # A method that is overridden is found on its base classes too.
        holders = [cls for cls in getattr(owner, "__mro__", (owner,)) if name in vars(cls)]
        originals = [vars(holder)[name] for holder in holders]
        for holder in holders:
            delattr(holder, name)
        missing = check()
        setattr(holders[0], name, other)
        changed = check()
        for holder, original in zip(holders, originals, strict=True):
            setattr(holder, name, original)
        where = getattr(owner, "__qualname__", owner.__name__)
        entry = {"where": f"{where}.{name}", "parameters": list(parameters)}
        found.append(entry | {"missing": missing, "changed": changed, "restored": check()})
    return found


def other_versions(versions: dict[str, list[str]]) -> dict[str, str | None]:
    """The refusal for each version of each package, the rest being as installed."""
    from unittest.mock import patch

    from sdpo_plugin.host import compat

    real = compat.version
    refusals = {}
    for package, numbers in versions.items():
        for number in numbers:
            answers = {package: number}
            with patch.object(compat, "version", lambda name, answers=answers: answers.get(name) or real(name)):
                refusals[f"{package} {number}"] = _refusal(compat.require_supported_host)
    return refusals


def newer_version(package: str, number: str, broken: bool) -> dict[str, Any]:
    """What is said where one package is newer than the tests, and, if `broken`, lacks what is relied on."""
    import logging
    from unittest.mock import patch

    from sdpo_plugin.host import compat, relied_on

    real, said = compat.version, []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    compat.LOG.addHandler(handler)
    if broken:
        del relied_on.FINAL_SAVE.owner.save_trained_model
    with patch.object(compat, "version", lambda name: number if name == package else real(name)):
        return {"refusal": _refusal(compat.require_supported_host), "warnings": said}


def patch_and_undo(module: str, name: str) -> dict[str, Any]:
    """Apply and undo the patches in every order, and watch one function of a module."""
    import importlib

    from sdpo_plugin.host import compat, patches

    owner = importlib.import_module(module)

    def now() -> Any:
        return getattr(owner, name)

    original = now()
    seen: dict[str, Any] = {}
    patches.undo_patches()
    seen["undo before apply"] = now() is original
    patches.patch_host()
    once = now()
    patches.patch_host()
    seen["applied"] = once is not original
    seen["twice is once"] = now() is once
    seen["supported while applied"] = _refusal(compat.require_supported_host) is None
    patches.undo_patches()
    seen["undone"] = now() is original
    patches.undo_patches()
    seen["undone twice"] = now() is original

    def other(cfg: Any, surprise: Any) -> None: ...

    setattr(owner, name, other)
    seen["other signature"] = _refusal(patches.patch_host)
    seen["left alone"] = now() is other
    delattr(owner, name)
    seen["missing"] = _refusal(patches.patch_host)
    return seen


def what_patches_do() -> dict[str, bool]:
    """For a config of ours, and for others."""
    import axolotl.train
    from axolotl.utils.dict import DictDefault

    from sdpo_plugin.host import patches
    from sdpo_plugin.recognition import TRAINER_CLS

    saved: list[Any] = []
    axolotl.train.save_trained_model = lambda cfg, trainer, model: saved.append(model)
    patches.patch_host()
    setup, save = axolotl.train.setup_reference_model, axolotl.train.save_trained_model
    ours = DictDefault({"rl": "dpo", "trainer_cls": TRAINER_CLS, "output_dir": "."})
    trainer = DictDefault({"model": "adapter"})
    for config in (ours | {"adapter": "lora"}, ours, {"rl": "dpo", "adapter": "lora"}):
        save(DictDefault(config), trainer, "layers")
    return {
        "no model for ours": setup(ours, None) is None and setup(ours, tokenizer=None, processor=None) is None,
        # ORPO has no reference model by the host's own account: the call comes back without a model to load.
        "the host's own for others": setup(DictDefault({"rl": "orpo"}), None) is None,
        "the adapter alone for our LoRA runs": saved == ["adapter", "layers", "layers"],
    }


def losses_of_trl() -> list[str]:
    """The names that TRL's loss compares with, in its order."""
    import inspect
    import re

    from trl import DPOTrainer

    return list(dict.fromkeys(re.findall(r'if loss_type == "(\w+)"', inspect.getsource(DPOTrainer))))
