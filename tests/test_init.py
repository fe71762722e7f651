"""The package without its host: the core imports alone, and the plugin says what is missing."""

import subprocess
import tomllib
from pathlib import Path

import pytest

import sdpo_plugin
from sdpo_plugin import plugin_name
from sdpo_plugin.versions import requirement
from tests.conftest import RunPython
from tests.test_arrows import CORE, HOST_PACKAGES

IMPORT_CORE = f"""
import importlib, sys
for name in {sorted(CORE)!r}:
    importlib.import_module(name)
print(sorted(set({HOST_PACKAGES!r}) & set(sys.modules)))
"""
WITHOUT_AXOLOTL = """
import sys
class NoAxolotl:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "axolotl":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoAxolotl())
import sdpo_plugin
"""


@pytest.fixture(scope="module")
def plugin_without_axolotl(run_python: RunPython) -> subprocess.CompletedProcess[str]:
    return run_python(WITHOUT_AXOLOTL + "sdpo_plugin.SDPOPlugin")


def test_core_imports_nothing_of_the_host(run_python: RunPython) -> None:
    done = run_python(IMPORT_CORE)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_plugin_without_host_names_what_is_missing(
    plugin_without_axolotl: subprocess.CompletedProcess[str],
) -> None:
    assert plugin_without_axolotl.stderr == (
        "\nUnsupportedHostError\n"
        "sdpo_plugin: sdpo_plugin cannot load beside the installed packages: No module named 'axolotl'. "
        "Install a supported host: pip install 'axolotl[deepspeed]>=0.19,<0.22'.\n"
    )


def test_plugin_without_host_ends_the_process(plugin_without_axolotl: subprocess.CompletedProcess[str]) -> None:
    assert plugin_without_axolotl.returncode == 1


@pytest.mark.parametrize("arguments", [["doctor"], ["plan", "config.yaml"]])
def test_command_without_host_names_what_is_missing(run_python: RunPython, arguments: list[str]) -> None:
    """And no traceback; `report` needs no host."""
    done = run_python(WITHOUT_AXOLOTL + f"from sdpo_plugin.cli import sdpo\nsdpo({arguments!r})")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "sdpo_plugin: sdpo_plugin cannot load beside the installed packages: No module named 'axolotl'. "
        "Install a supported host: pip install 'axolotl[deepspeed]>=0.19,<0.22'.\n"
    )


def test_supported_versions_are_those_of_pyproject() -> None:
    asked = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    wanted = {requirement("axolotl").replace("axolotl", "axolotl[deepspeed]"), requirement("trl")}
    assert {line for line in asked if line.startswith(("axolotl", "trl"))} == wanted


def test_missing_host_is_a_runtime_error(run_python: RunPython) -> None:
    """Axolotl trains without a plugin that raises an ImportError."""
    program = """
try:
    sdpo_plugin.SDPOPlugin
except RuntimeError as error:
    print(type(error).__name__, isinstance(error, ImportError), repr(error.__cause__))
"""
    assert run_python(WITHOUT_AXOLOTL + program).stdout == (
        "UnsupportedHostError False ModuleNotFoundError(\"No module named 'axolotl'\")\n"
    )


def test_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'sdpo_plugin' has no attribute 'other'$"):
        sdpo_plugin.other  # noqa: B018 (the access is what is tested)


# The host's own handling of an item of `plugins:`, up to the class.
LOAD_PLUGIN = """
import importlib, sdpo_plugin
module, _, name = {entry!r}.rpartition(".")
try:
    getattr(importlib.import_module(module), name)
except ImportError as error:
    print("logged and passed over:", error)
"""


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("sdpo_plugin.SdpoPlugin", "module 'sdpo_plugin' has no attribute 'SdpoPlugin'"),
        ("sdpo_plugin.SDPO", "module 'sdpo_plugin' has no attribute 'SDPO'"),
        ("sdpo_plugin.Plugin", "module 'sdpo_plugin' has no attribute 'Plugin'"),
        ("sdpo_plugin.sdpo_plugin", "module 'sdpo_plugin' has no attribute 'sdpo_plugin'"),
        ("sdpo_plugin.plugin.SDPOPlugin", "there is no module 'sdpo_plugin.plugin'"),
        ("sdpo_plugin.plugins.SDPOPlugin", "there is no module 'sdpo_plugin.plugins'"),
        ("sdpo_plugin.sdpo.SDPOPlugin", "there is no module 'sdpo_plugin.sdpo'"),
    ],
)
def test_name_that_is_nearly_the_plugins(run_python: RunPython, entry: str, problem: str) -> None:
    """The host would log an ImportError and train without the plugin."""
    done = run_python(LOAD_PLUGIN.format(entry=entry))
    assert done.stderr == (
        f"\nPluginNameError\nsdpo_plugin: {problem}; did you mean plugins: [sdpo_plugin.SDPOPlugin]?\n"
    )
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("module", ["sdpo_plugin.nope", "sdpo_plugin.__init", "sdpo_plugin.host.plugin_of_mine"])
def test_other_module_that_is_not_there_is_an_import_error(run_python: RunPython, module: str) -> None:
    done = run_python(LOAD_PLUGIN.format(entry=f"{module}.X"))
    assert done.stdout == f"logged and passed over: No module named {module!r}\n"


def test_package_has_no_attribute_that_is_nearly_the_plugins() -> None:
    assert not hasattr(sdpo_plugin, "SDPOPlugn")
    with pytest.raises(AttributeError, match=r"'SDPOPlugn'; did you mean plugins: \[sdpo_plugin.SDPOPlugin\]\?"):
        sdpo_plugin.SDPOPlugn  # noqa: B018 (the access is what is tested)


@pytest.mark.parametrize("module", sorted(CORE - {"sdpo_plugin"}))
def test_no_module_of_the_core_is_taken_for_the_plugin(module: str) -> None:
    """`from sdpo_plugin import lock` asks for the attribute first."""
    with pytest.raises(AttributeError, match=f"^module 'sdpo_plugin' has no attribute '{module.split('.')[1]}'$"):
        raise plugin_name.no_such_attribute(module.split(".")[1])


def test_what_the_package_offers_is_frozen() -> None:
    assert sdpo_plugin.__all__ == ["SDPOArgs", "SDPOPlugin", "StepContext", "__version__"]


def test_schema_of_the_host_gets_the_block_and_nothing_else() -> None:
    assert list(sdpo_plugin.SDPOArgs.model_fields) == ["sdpo"]
