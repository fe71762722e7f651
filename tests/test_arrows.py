"""Who may import whom. The tree shows one boundary; this keeps it."""

import ast
from pathlib import Path

import pytest

import sdpo_plugin

PACKAGE = Path(sdpo_plugin.__file__).parent
HOST_PACKAGES = ("accelerate", "axolotl", "deepspeed", "peft", "torch", "transformers", "trl")
ALLOWED = {
    "__init__": {"args", "crash", "errors", "misspelt"},  # and host.plugin, but not before someone asks for the plugin
    "errors": set(),
    "names": set(),
    "stored": set(),
    "scrub": set(),
    "content": set(),
    "files": {"errors"},
    "args": {"errors", "names"},
    "bounds": {"errors"},
    "conflicts": {"errors"},
    "misspelt": {"args", "crash", "errors"},
    "overwrites": {"args", "errors", "ledger", "sealed"},
    "crash": {"errors", "scrub"},
    "gate": {"errors"},
    "partition": {"errors"},
    "plan": {"errors", "files", "names", "stored"},
    "reference": {"errors", "files"},
    "rows": set(),
    "ledger": {"errors", "files", "names", "plan", "stored"},
    "sealed": {"files", "names", "stored"},
    "lock": {"errors", "files"},
    "drift": {"errors", "scrub"},
    "disk": {"errors", "plan"},
    "places": {"errors", "files", "ledger", "plan", "sealed"},
    "resume": {"errors", "files", "ledger", "overwrites", "places", "plan", "sealed"},
    "tables": {"errors", "files", "ledger", "reference"},
    "log": {"drift", "files", "ledger", "places", "plan", "reference", "resume", "sealed", "tables"},
    "runner": {"ledger", "log", "plan", "reference", "resume"},
    "diagnostics": {"reference"},
    "notes": {"diagnostics", "plan", "reference"},
    "render": {"plan"},
    "report": {
        *("crash", "diagnostics", "errors", "files", "ledger", "notes"),
        *("plan", "reference", "render", "stored", "tables"),
    },
}
CORE = {"sdpo_plugin"} | {f"sdpo_plugin.{name}" for name in ALLOWED if name != "__init__"}


def imported(tree: ast.AST) -> set[str]:
    """Dotted names that the code imports, wherever in it. `from a import b` may import a.b, so both are given."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "sdpo_plugin" + (f".{node.module}" if node.module else "") if node.level else str(node.module)
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def modules_of(names: set[str]) -> set[str]:
    """The modules of this package among the names: "plan", "host", …"""
    tails = {name.split(".")[1] for name in names if name.startswith("sdpo_plugin.")}
    return {tail for tail in tails if (PACKAGE / f"{tail}.py").exists() or (PACKAGE / tail).is_dir()}


def host_packages_of(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} & set(HOST_PACKAGES)


def parse(name: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{name}.py").read_text())


def without_deferred(tree: ast.Module) -> ast.Module:
    """The module without its functions and its `if TYPE_CHECKING:` blocks: what runs when it is imported."""

    def is_deferred(node: ast.stmt) -> bool:
        if isinstance(node, ast.If):
            return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return isinstance(node, ast.FunctionDef)

    return ast.Module([node for node in tree.body if not is_deferred(node)], [])


def test_every_core_module_is_in_the_table() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(ALLOWED)


@pytest.mark.parametrize("name", sorted(set(ALLOWED) - {"__init__"}))
def test_module_imports_only_what_it_may(name: str) -> None:
    assert modules_of(imported(parse(name))) <= ALLOWED[name]


def test_package_imports_only_what_it_may() -> None:
    assert modules_of(imported(without_deferred(parse("__init__")))) <= ALLOWED["__init__"]


def test_package_imports_of_the_host_adapter_only_the_plugin() -> None:
    names = imported(parse("__init__"))
    assert {name for name in names if name.startswith("sdpo_plugin.host")} == {
        "sdpo_plugin.host.plugin",
        "sdpo_plugin.host.plugin.SDPOPlugin",
    }


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_core_module_imports_no_host_package(name: str) -> None:
    assert host_packages_of(imported(parse(name))) == set()


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        pytest.param("import sdpo_plugin.report", {"report"}, id="import"),
        pytest.param("from sdpo_plugin import report, gate", {"report", "gate"}, id="from-package"),
        pytest.param("from sdpo_plugin.report import build_report", {"report"}, id="from-module"),
        pytest.param("from . import report", {"report"}, id="relative-package"),
        pytest.param("from .host.plugin import SDPOPlugin", {"host"}, id="relative-module"),
        pytest.param("def f():\n    from sdpo_plugin import report", {"report"}, id="inside-a-function"),
        pytest.param("from sdpo_plugin import __version__", set(), id="not-a-module"),
    ],
)
def test_the_reader_of_imports_sees(code: str, modules: set[str]) -> None:
    assert modules_of(imported(ast.parse(code))) == modules


@pytest.mark.parametrize(
    "code",
    ["import torch.nn", "from torch import nn", "def f():\n    import torch", "if TYPE_CHECKING:\n    import torch"],
)
def test_the_reader_of_imports_sees_host_packages(code: str) -> None:
    assert host_packages_of(imported(ast.parse(code))) == {"torch"}
