"""Contracts with the host: what each kind finds broken, and that no use of a private name goes without one."""

import ast
from pathlib import Path
from typing import Any

import pytest

import sdpo_plugin
from sdpo_plugin.host.contracts import CallsOnly, Contract, Has, Names, ReadsOnly, Takes

HOST = Path(sdpo_plugin.__file__).parent / "host"
TABLE = HOST / "relied_on.py"
HOST_PACKAGES = ("accelerate", "axolotl", "datasets", "deepspeed", "lm_eval", "peft", "transformers", "trl")


class Base:
    def step(self, batch: Any) -> Any:
        return batch


class Trainer(Base):
    size = 1
    config = 1
    dataset = 2

    def __init__(self) -> None:
        self._metrics = {"train": {"rewards/margins": [0.0]}}

    def set_up(self, steps: int, values: Any) -> None:
        values["steps"] = min(steps, self.config, self.dataset)

    def step(self, batch: Any) -> Any:
        print(batch)
        return super().step(batch)

    @classmethod
    def made(cls, config: Any) -> None: ...


@pytest.mark.parametrize(
    ("contract", "found"),
    [
        (Takes(Trainer, "set_up", ("self", "steps", "values")), None),
        (Takes(Trainer, "made", ("config",)), None),
        (Takes(Base, "step", ("self", "batch")), None),
        (Takes(Base, "step", ("self", "batch", "scale")), "it takes self, batch"),
        (Takes(Base, "steps", ("self", "batch")), "it is missing"),
        (Has(Trainer(), "_metrics"), None),
        (Has(Trainer, "size"), None),
        (Has(Trainer(), "_metric"), "it is missing"),
        (Names(Trainer, "__init__", ("_metrics", "train", "rewards/margins")), None),
        (Names(Trainer, "__init__", ("_metrics", "accuracies", "eval")), "its code has no accuracies, eval"),
        (Names(Trainer, "init", ("_metrics",)), "it is missing"),
        (ReadsOnly(Trainer, "set_up", ("config", "dataset")), None),
        (ReadsOnly(Trainer, "set_up", ("config",)), "it reads self.dataset"),
        (ReadsOnly(Trainer, "setup", ("config",)), "it is missing"),
        (CallsOnly(Trainer, "step", ("super", "super().step", "print")), None),
        (CallsOnly(Trainer, "step", ("super", "super().step")), "it calls print"),
        (CallsOnly(Trainer, "other_step", ()), None),  # the class has none: nothing is skipped
    ],
)
def test_what_a_contract_finds(contract: Contract, found: str | None) -> None:
    assert contract.broken() == found


@pytest.mark.parametrize(
    ("contract", "what"),
    [
        (Takes(Trainer, "step", ("self", "batch")), "Trainer.step(self, batch)"),
        (Has(Trainer(), "_metrics"), "Trainer._metrics"),
        (Names(ast, "AST", ("_fields", "lineno")), "ast.AST (with _fields, lineno)"),
        (ReadsOnly(Trainer, "set_up", ("cfg",)), "Trainer.set_up (of self only cfg)"),
        (CallsOnly(Trainer, "step", ("super", "gc.collect")), "Trainer.step (which may call only super, gc.collect)"),
    ],
)
def test_how_a_contract_is_named(contract: Contract, what: str) -> None:
    assert contract.what.removeprefix(f"{__name__}.") == what


# --- no use without a contract ---

TRAINERS = {"trainer", "self._trainer"}  # what the modules of host/ call the host's trainer
PARTS = ("accelerator", "callback_handler", "control", "state", "args")
CLASS = "StepwiseDPOTrainer"  # the one class that inherits from it
OURS = {"step", "loggers", "padded_collator", "chain", "attach", "run_host_training", "_initial_state", "_is_built"}
OURS |= {"_cards", "_write_card"}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_of_the_host(node: ast.ImportFrom) -> bool:
    return (node.module or "").split(".")[0] in HOST_PACKAGES


def uses(tree: ast.Module) -> set[str]:
    """Names of the host that the code relies on and that nobody promises."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and is_of_the_host(node)]
    imported = {alias.asname or alias.name for node in imports for alias in node.names}
    found = {alias.name for node in imports for alias in node.names if is_private(alias.name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_use(node, imported):
            found.add(node.attr)
        elif isinstance(node, ast.Subscript) and "._metrics" in ast.unparse(node.value):
            found |= {str(part.value) for part in [node.slice] if isinstance(part, ast.Constant) and part.value != -1}
        elif isinstance(node, ast.ClassDef) and node.name == CLASS:
            found |= {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute) and _is_own(part)}
    return found - {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)} - OURS - {"__init__"}


def _is_use(node: ast.Attribute, imported: set[str]) -> bool:
    owner = ast.unparse(node.value)
    return (
        (is_private(node.attr) and owner not in ("os", "self") and not owner.startswith("super("))
        or (node.attr.startswith("ds_") and owner == "parameter")
        or owner in TRAINERS
        or (
            owner.removeprefix("self._").removeprefix("trainer.") in PARTS
            and owner.startswith(("trainer.", "self._trainer."))
        )
        or (owner in imported and isinstance(node.ctx, ast.Store))  # a function that is replaced
    )


def _is_own(node: ast.Attribute) -> bool:
    """Within the class: what it asks of ``super()``, reads and writes of itself."""
    owner = ast.unparse(node.value)
    return owner == "self" or owner.startswith("super(")


def pinned() -> set[str]:
    """Every word in quotes of the table."""
    return {str(node.value) for node in ast.walk(parse(TABLE)) if isinstance(node, ast.Constant)}


MODULES = sorted(path for path in HOST.rglob("*.py") if path != TABLE)


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(HOST)) for path in MODULES])
def test_every_use_of_what_nobody_promises_is_pinned(path: Path) -> None:
    """A new one gets its contract in host/relied_on.py."""
    assert uses(parse(path)) - pinned() == set()


@pytest.mark.parametrize(
    ("code", "names"),
    [
        pytest.param("trainer._secret()", {"_secret"}, id="private-method"),
        pytest.param("self._trainer.new_thing", {"new_thing"}, id="attribute-of-the-trainer"),
        pytest.param("trainer.accelerator.new_thing()", {"accelerator", "new_thing"}, id="attribute-of-a-part"),
        pytest.param("parameter.ds_new", {"ds_new"}, id="attribute-of-a-sharded-parameter"),
        pytest.param("from trl.trainer import _private", {"_private"}, id="private-import"),
        pytest.param("from axolotl.utils.data import rl\nrl.new_thing = 1", {"new_thing"}, id="function-replaced"),
        pytest.param('trainer._metrics["train"]["new/key"][-1]', {"_metrics", "train", "new/key"}, id="key"),
        pytest.param(
            f"class {CLASS}(A):\n    def log(self):\n        super().log()\n        self.new_thing = self.step",
            {"log", "new_thing"},
            id="subclass",
        ),
        pytest.param("os._exit(1)\nself._own()\nmath.inf\nself.thing", set(), id="nothing-of-the-host"),
    ],
)
def test_the_reader_of_uses_sees(code: str, names: set[str]) -> None:
    assert uses(ast.parse(code)) == names
