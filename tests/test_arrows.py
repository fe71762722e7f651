"""Who may import whom: module by module in the core, wing by wing in the whole package."""

import ast
from pathlib import Path

import pytest

import sdpo_plugin

ROOT = Path(sdpo_plugin.__file__).parent
PACKAGE = "sdpo_plugin"
HOST_PACKAGES = ("accelerate", "axolotl", "deepspeed", "lm_eval", "peft", "torch", "transformers", "trl")
MOST_IMPORTS = 15  # modules of this package that one of them needs; more of them are more than one thing

# Each module of the core, and the modules of this package that it may import.
ALLOWED = {
    "__init__": "crash plugin_name versions",  # and args, host.plugin, but not before someone asks for them
    "args": "lm_eval_args partition_args refresh_args steps_args",
    "check_words": "pair_checks text",
    "block": "args errors lm_eval_args partition_args refresh_args steps_args",
    "block_conflicts": "args errors",
    "bounds": "errors",
    "__main__": "cli",
    "cli": "crash errors host.commands report.command versions",  # the host's when a command needs it
    "conflicts": "errors recognition",
    "crash": "errors scrub",
    "data_conflicts": "errors",
    "deepspeed_conflicts": "errors",
    "digests": "",
    "errors": "",
    "gate": "errors",
    "lm_eval_args": "",
    "local_files": "",
    "losses": "errors",
    "estimates": "",
    "lost_content": "",
    "measures": "estimates tables",
    "misspelt": "args errors partition_args recognition text",
    "names": "",
    "order": "tables",
    "overlaps": "partition plan rows",
    "pair_checks": "estimates pair_facts rows schema",
    "pair_facts": "rows",
    "partition": "errors",
    "partition_args": "",
    "plan": "names refresh schema text",
    "pool": "errors",
    "plugin_name": "crash errors text",
    "recognition": "plugin_name text",
    "refresh": "schema",
    "refresh_args": "",
    "rows": "",
    "batches": "rows",
    "sampling": "digests plan",
    "schema": "",
    "step_conflicts": "errors steps_args",
    "steps_args": "names refresh_args",
    "scrub": "",
    "tables": "digests errors",
    "text": "",
    "versions": "errors",
    "run_dir": "",
    "run_dir.checkpoints": "errors plan run_dir.ledger run_dir.paths run_dir.sealed",
    "run_dir.cleanup": "plan run_dir.files run_dir.ledger run_dir.paths run_dir.sealed",
    "run_dir.data_checks": "pair_checks run_dir.files run_dir.paths run_dir.stored schema",
    "run_dir.disk": "errors text",
    "run_dir.drift": "errors scrub",
    "run_dir.evaluations": "run_dir.files run_dir.paths run_dir.stored schema",
    "run_dir.files": "errors",
    "run_dir.fresh": "errors run_dir.checkpoints run_dir.files run_dir.ledger run_dir.paths run_dir.sealed",
    "run_dir.growth": ("errors plan run_dir.files run_dir.ledger run_dir.models run_dir.paths run_dir.sealed"),
    "run_dir.history": "plan run_dir.files run_dir.ledger run_dir.paths run_dir.stored schema",
    "run_dir.inputs": "args errors run_dir.paths steps_args",
    "run_dir.journal": (
        "plan run_dir.checkpoints run_dir.cleanup run_dir.drift run_dir.files run_dir.fresh run_dir.ledger "
        "run_dir.made_rows run_dir.models run_dir.paths run_dir.picked_rows run_dir.records run_dir.sealed "
        "run_dir.stored run_dir.table_files tables"
    ),
    "run_dir.ledger": "errors names plan refresh run_dir.paths run_dir.stored schema tables",
    "run_dir.lock": "errors run_dir.files",
    "run_dir.loggers": "run_dir.files run_dir.paths run_dir.stored schema",
    "run_dir.made_rows": "digests errors plan run_dir.files run_dir.ledger run_dir.paths",
    "run_dir.models": "errors plan run_dir.files run_dir.ledger run_dir.paths run_dir.sealed",
    "run_dir.next_action": "plan run_dir.ledger",
    "run_dir.opening": (
        "errors run_dir.checkpoints run_dir.cleanup run_dir.fresh run_dir.growth run_dir.paths run_dir.resume"
    ),
    "run_dir.paths": "plan",
    "run_dir.picked_rows": "digests errors run_dir.files run_dir.ledger run_dir.paths",
    "run_dir.progress": "run_dir.files run_dir.paths schema",
    "run_dir.records": "plan run_dir.ledger run_dir.models run_dir.paths run_dir.sealed run_dir.table_files tables",
    "run_dir.reference_cache": "digests errors run_dir.table_files tables",
    "run_dir.resume": (
        "errors plan run_dir.checkpoints run_dir.fresh run_dir.growth run_dir.ledger run_dir.made_rows run_dir.models "
        "run_dir.next_action run_dir.paths run_dir.sealed"
    ),
    "run_dir.sealed": "digests names run_dir.files run_dir.stored schema",
    "run_dir.stored": "digests run_dir.files",
    "run_dir.table_files": "errors run_dir.files run_dir.ledger run_dir.paths tables",
    "report": "",
    "report.command": "errors report.build report.compare report.render report.write run_dir.files run_dir.paths",
    "report.compare": (
        "estimates measures report.build report.cells run_dir.ledger run_dir.paths run_dir.table_files tables text"
    ),
    "report.build": (
        "errors report.cells report.forecast report.lm_eval report.matrices report.notes report.steps report.verdicts "
        "report.write run_dir.files run_dir.history run_dir.ledger run_dir.paths run_dir.progress run_dir.table_files"
    ),
    "report.forecast": "run_dir.ledger run_dir.progress",
    "report.logged": "",
    "report.lines": "report.view text",
    "report.card": "report.published report.view",
    "report.cells": "plan run_dir.ledger run_dir.paths run_dir.table_files sampling tables",
    "report.curves": "",
    "report.figures": "report.curves report.palette report.view",
    "report.html": "report.curves report.lm_eval report.markup report.view report.style report.svg",
    "report.markup": "report.palette report.view",
    "report.matrices": "measures report.cells",
    "report.notes": "check_words plan run_dir.data_checks run_dir.paths",
    "report.oklab": "",
    "report.palette": "report.oklab",
    "report.pictures": "report.figures",  # where matplotlib is
    "report.render": "report.lm_eval report.view text",
    "report.view": "check_words pair_checks report.palette run_dir.stored text",
    "report.steps": "measures plan report.curves run_dir.history run_dir.ledger tables",
    "report.style": "report.palette",
    "report.svg": "report.curves report.markup",
    "report.verdicts": "estimates measures plan report.cells tables",
    "report.published": "run_dir.drift scrub",
    "report.lm_eval": "plan run_dir.evaluations run_dir.ledger run_dir.paths text",
    "runner": "plan run_dir.journal run_dir.ledger run_dir.made_rows run_dir.resume step_host",
    "step_host": "plan refresh run_dir.records tables",
    "step_hooks": "errors plan run_dir.ledger",
    "report.write": "report.html report.pictures report.render run_dir.files run_dir.paths",
}

METHOD = (
    "plan refresh order sampling estimates partition pool overlaps batches rows tables measures gate text digests "
    "schema names errors scrub pair_facts pair_checks check_words lost_content"
).split()
# What a user writes and sees.
CONFIG = (
    "args block block_conflicts bounds conflicts crash data_conflicts deepspeed_conflicts lm_eval_args local_files "
    "losses misspelt partition_args plugin_name recognition refresh_args step_conflicts steps_args versions"
).split()
# Each wing, and the wings that it may import; itself goes without saying.
ARROWS = {
    "method": set(),
    "config": {"method"},
    "run_dir": {"method", "config"},
    "report": {"method", "config", "run_dir"},
    "runner": {"method", "run_dir"},
    "step_hooks": {"method", "run_dir"},
    "host": {"method", "config", "run_dir", "report", "runner", "step_hooks"},
    "__init__": {"method", "config"},
    "cli": {"config", "method", "report", "host"},
    "__main__": {"cli"},
}


def name_of(path: Path) -> str:
    """The dotted name of a module below the package: "plan", "run_dir", "run_dir.ledger"; "__init__" of itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
CORE = {PACKAGE} | {f"{PACKAGE}.{name}" for name in ALLOWED if name != "__init__"}


def wing_of(name: str) -> str:
    if name in METHOD:
        return "method"
    if name == "step_host":
        return "runner"
    return "config" if name in CONFIG else name.split(".")[0]


def imported(tree: ast.AST, package: str = PACKAGE) -> set[str]:
    """Dotted names that the code imports, wherever in it; of `from a import b`, a.b where that is a module, else a."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {
                f"{base}.{alias.name}" if f"{base}.{alias.name}".removeprefix(f"{PACKAGE}.") in MODULES else base
                for alias in node.names
            }
    return names


def modules_of(names: set[str]) -> set[str]:
    """The modules of this package among the names: "plan", "run_dir.ledger", …"""
    return {name.removeprefix(f"{PACKAGE}.") for name in names} & set(MODULES)


def host_packages_of(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} & set(HOST_PACKAGES)


def parse(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def imports_of(name: str) -> set[str]:
    """The modules of this package that one of them imports."""
    is_package = MODULES[name].name == "__init__.py"
    below = name if is_package else name.rpartition(".")[0]
    return modules_of(imported(parse(name), f"{PACKAGE}.{below}".rstrip(".")))


def without_deferred(tree: ast.Module) -> ast.Module:
    """The module without its functions and its `if TYPE_CHECKING:` blocks: what runs when it is imported."""

    def is_deferred(node: ast.stmt) -> bool:
        if isinstance(node, ast.If):
            return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return isinstance(node, ast.FunctionDef)

    return ast.Module([node for node in tree.body if not is_deferred(node)], [])


# --- module by module ---


def test_every_core_module_is_in_the_table() -> None:
    assert {name for name in MODULES if wing_of(name) != "host"} == set(ALLOWED)


@pytest.mark.parametrize("name", sorted(set(ALLOWED) - {"__init__"}))
def test_module_imports_only_what_it_may(name: str) -> None:
    assert imports_of(name) <= set(ALLOWED[name].split())


def test_package_imports_only_what_it_may() -> None:
    assert modules_of(imported(without_deferred(parse("__init__")))) <= set(ALLOWED["__init__"].split())


def test_package_imports_of_the_host_adapter_only_the_plugin() -> None:
    assert {name for name in imports_of("__init__") if wing_of(name) == "host"} == {"host.plugin"}


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_core_module_imports_no_host_package(name: str) -> None:
    assert host_packages_of(imported(parse(name))) == set()


# --- wing by wing ---


def test_every_module_is_in_a_wing() -> None:
    assert {wing_of(name) for name in MODULES} == set(ARROWS)


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"__init__"}))
def test_module_imports_only_wings_that_its_own_may(name: str) -> None:
    wing = wing_of(name)
    assert {wing_of(found) for found in imports_of(name)} <= {wing, *ARROWS[wing]}


def test_package_imports_only_wings_that_it_may() -> None:
    found = modules_of(imported(without_deferred(parse("__init__"))))
    assert {wing_of(name) for name in found} <= ARROWS["__init__"]


def test_arrows_between_wings_go_one_way() -> None:
    order = ["method", "config", "run_dir", "report", "runner", "step_hooks", "host", "cli", "__main__"]
    for wing, others in ARROWS.items():
        if wing != "__init__":
            assert others <= set(order[: order.index(wing)])


# --- the rooms of the host's wing ---

# What each room may import of the host's wing besides itself; the flat modules may import all.
ROOMS = {
    "host.engines": set(),
    "host.data": {"host.engines", "host.patches"},
    "host.forward": {"host.engines", "host.data", "host.patches", "host.stopping"},
    "host.evaluation": {"host.compat", "host.relied_on", "host.engines", "host.forward", "host.setup", "host.stopping"},
}


def room_of(name: str) -> str:
    """The room below host/ that a module stands in, or its own name where it stands in none."""
    return next((room for room in ROOMS if name == room or name.startswith(f"{room}.")), name)


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room_of(name) in ROOMS))
def test_room_of_the_host_imports_only_what_it_may(name: str) -> None:
    rooms = {room_of(found) for found in imports_of(name) if found.startswith("host")}
    assert rooms - {"host"} <= {room_of(name), *ROOMS[room_of(name)]}


# --- no module knows too many, and one writes the ledger ---


@pytest.mark.parametrize("name", sorted(MODULES))
def test_module_imports_few_others(name: str) -> None:
    assert len(imports_of(name)) <= MOST_IMPORTS


def uses(tree: ast.AST, function: str) -> bool:
    """Whether the code names a function, in an import or as an attribute."""
    return any(
        (isinstance(node, ast.ImportFrom) and function in {alias.name for alias in node.names})
        or (isinstance(node, ast.Attribute) and node.attr == function)
        for node in ast.walk(tree)
    )


def writes_ledger(tree: ast.AST) -> bool:
    """Whether a ledger's path is given to a function that writes."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name | ast.Attribute)
        and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr).startswith("write")
        and any(isinstance(part, ast.Attribute) and part.attr == "ledger" for part in ast.walk(node))
        for node in ast.walk(tree)
    )


def test_only_journal_and_seals_write_records() -> None:
    """And histories, which no resume reads."""
    writers = {name for name in MODULES if uses(parse(name), "write_stored")}
    assert writers == {"run_dir.journal", "run_dir.sealed", "run_dir.history"}


def test_only_the_journal_writes_the_ledger() -> None:
    assert {name for name in MODULES if writes_ledger(parse(name))} == {"run_dir.journal"}


# --- the readers of code that these tests trust ---


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        pytest.param("import sdpo_plugin.report.build", {"report.build"}, id="import"),
        pytest.param("import sdpo_plugin.report.build as build", {"report.build"}, id="import-as"),
        pytest.param("from sdpo_plugin import report, gate", {"report", "gate"}, id="from-package"),
        pytest.param("from sdpo_plugin.report import build", {"report.build"}, id="from-package-below"),
        pytest.param("from sdpo_plugin.report.build import build_report", {"report.build"}, id="from-module"),
        pytest.param("from . import report", {"report"}, id="relative-package"),
        pytest.param("from .host.plugin import SDPOPlugin", {"host.plugin"}, id="relative-module"),
        pytest.param("def f():\n    from sdpo_plugin import report", {"report"}, id="inside-a-function"),
        pytest.param("if TYPE_CHECKING:\n    from sdpo_plugin import gate", {"gate"}, id="for-types"),
        pytest.param("from sdpo_plugin import __version__", set(), id="not-a-module"),
        pytest.param("import sdpo_plugin_of_another", set(), id="another-package"),
    ],
)
def test_the_reader_of_imports_sees(code: str, modules: set[str]) -> None:
    assert modules_of(imported(ast.parse(code))) == modules


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        pytest.param("from . import ledger", {"run_dir.ledger"}, id="beside"),
        pytest.param("from .ledger import Ledger", {"run_dir.ledger"}, id="from-beside"),
        pytest.param("from .. import gate", {"gate"}, id="above"),
        pytest.param("from ..report.build import build_report", {"report.build"}, id="another-package"),
    ],
)
def test_the_reader_of_imports_sees_from_within_a_package(code: str, modules: set[str]) -> None:
    assert modules_of(imported(ast.parse(code), "sdpo_plugin.run_dir")) == modules


@pytest.mark.parametrize(
    "code",
    ["import torch.nn", "from torch import nn", "def f():\n    import torch", "if TYPE_CHECKING:\n    import torch"],
)
def test_the_reader_of_imports_sees_host_packages(code: str) -> None:
    assert host_packages_of(imported(ast.parse(code))) == {"torch"}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from sdpo_plugin.run_dir.stored import write_stored", True),
        ("from sdpo_plugin.run_dir import stored\nstored.write_stored(path, ledger, 2)", True),
        ("from sdpo_plugin.run_dir.stored import read_stored", False),
    ],
    ids=["import", "attribute", "another"],
)
def test_the_reader_of_names_sees(code: str, found: bool) -> None:
    assert uses(ast.parse(code), "write_stored") is found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("write_stored(run.ledger, ledger, 2)", True),
        ("files.write_json(self._run.ledger, value)", True),
        ("run.ledger.write_text(content)", True),
        ("write_json(run.plan, value)", False),
        ("Ledger.load(run.ledger)", False),
    ],
)
def test_the_reader_of_calls_sees(code: str, found: bool) -> None:
    assert writes_ledger(ast.parse(code)) is found
