"""Files of a run that were damaged or forged: they are read as they were written, or refused with a message.

And whatever they say, nothing outside of the run directory is removed or written.
"""

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_plugin.errors import OutputError, SDPOError
from sdpo_plugin.report.build import build_report
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.resume import find_start
from sdpo_plugin.run_dir.sealed import SEAL, Seal, read_seal
from tests.dead_runs import checkpoint, die, resume
from tests.fakes import FakeHost, with_digest

NESTED: Any = "end"
for _ in range(150):
    NESTED = [NESTED]
ODD = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 2**63, 10**400, 0.5, 1e308, "", "M_0", "M_1", "M_7", "exported", "planned"),
        *("../victim/step-1", "/etc", "..", ".", "sdpo", "SDPO", "checkpoint-1", "step-1", "step-2", "a\0b", "é" * 300),
        *([], {}, [[]], {"a": {}}, {"": ""}, NESTED),
    ]
)
JSON = ODD | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def changed(draw: st.DrawFn, value: dict[str, Any]) -> dict[str, Any]:
    """The value with one to three parts replaced, taken out, renamed, or doubled."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(value))
        if not found:
            break
        *way, key = draw(st.sampled_from(found))
        holder = value
        for part in way:
            holder = holder[part]
        kind = draw(st.sampled_from(["replace", "replace", "drop", "rename", "double"]))
        if kind == "replace":
            holder[key] = copy.deepcopy(draw(JSON))
        elif kind == "drop":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(["../x", "/x", "", "a", "M_9"]))] = (
                holder[key] if kind == "double" else holder.pop(key)
            )
        else:
            holder.insert(0, copy.deepcopy(holder[key]))
    return value


@st.composite
def torn(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes with some of them cut out, and others put in."""
    start, end = sorted(draw(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)))))
    end = draw(st.sampled_from([start, min(start + 1, len(whole)), end]))
    odd = st.sampled_from(
        [b"", b"\xff", b"\x00", b"[" * 10**5, b'{"a":' * 10**4, b"NaN", b"1e999", b"9" * 5000, b'"\\ud800"']
    )
    return whole[:start] + draw(odd | st.binary(max_size=3)) + whole[end:]


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that died in step 2, with a checkpoint; beside it stands another run's model of the same kind."""
    run = RunDir(tmp_path_factory.mktemp("dead") / "out")
    die(run, "train M_1 on D_2")
    checkpoint(run, 2, 5)
    return run


LEDGER, SEALED = "sdpo/ledger.json", f"step-1/{SEAL}"
PLAN = "sdpo/plan.json"  # a copy for people, which is never read
READ: dict[str, Callable[[Path], Any]] = {
    LEDGER: Ledger.load,
    SEALED: lambda path: read_seal(path.parent),
}
REFUSAL = {
    LEDGER: (OutputError, r"ledger\.json is not a ledger of schema version 2 \(.*restore it, or move the output"),
    SEALED: (ValueError, r"its seal is damaged \("),
}


def loaded(run: RunDir, name: str) -> Any:
    """The content of the file; None where it is refused as it should be."""
    kind, words = REFUSAL[name]
    try:
        return READ[name](run.root / name)
    except kind as error:
        refusal = error
    assert type(refusal) is kind
    assert re.search(words, str(refusal), re.DOTALL), str(refusal)
    return None


@pytest.fixture(scope="module")
def in_place(dead: RunDir) -> Callable[[str, bytes, Callable[[], None]], None]:
    """Calls something while a file of the dead run holds other bytes."""

    def call(name: str, data: bytes, then: Callable[[], None]) -> None:
        path = dead.root / name
        whole = path.read_bytes()
        path.write_bytes(data)
        try:
            then()
        finally:
            path.write_bytes(whole)

    return call


@pytest.mark.parametrize("name", READ)
@given(data=st.data())
def test_torn_file_is_equal_or_refused(dead: RunDir, in_place: Any, name: str, data: st.DataObject) -> None:
    whole = loaded(dead, name)
    assert isinstance(whole, Ledger | Seal)

    def check() -> None:
        assert loaded(dead, name) in (None, whole)

    in_place(name, data.draw(torn((dead.root / name).read_bytes())), check)


@pytest.mark.parametrize("name", READ)
@given(data=st.data())
def test_edited_file_is_equal_or_refused(dead: RunDir, in_place: Any, name: str, data: st.DataObject) -> None:
    """The digest stays that of the file before the edit."""
    whole = loaded(dead, name)
    edited = data.draw(changed(json.loads((dead.root / name).read_bytes())))

    def check() -> None:
        assert loaded(dead, name) in (None, whole)

    in_place(name, json.dumps(edited).encode(), check)


@pytest.mark.parametrize("name", READ)
@given(data=st.data())
def test_forged_file_is_read_or_refused(dead: RunDir, in_place: Any, name: str, data: st.DataObject) -> None:
    """With a digest that fits: types, names and order are checked too."""
    value = data.draw(changed(json.loads((dead.root / name).read_bytes())))
    in_place(name, with_digest(value).encode(), lambda: loaded(dead, name))


@given(data=st.data())
def test_plan_json_may_hold_anything(dead: RunDir, in_place: Any, data: st.DataObject) -> None:
    """Start and report depend on the ledger alone."""
    start, report = find_start(dead), build_report(dead)

    def check() -> None:
        assert (find_start(dead), build_report(dead)) == (start, report)

    in_place(PLAN, data.draw(torn((dead.root / PLAN).read_bytes())), check)


@pytest.mark.parametrize("name", READ)
@given(data=st.data())
def test_run_with_a_forged_file_is_resumed_or_says_why_not_and_touches_nothing_outside(
    dead: RunDir, tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    """The whole run: where it begins, its steps, its report, and what it removes."""
    folder = tmp_path_factory.mktemp("forged")
    run = RunDir(Path(shutil.copytree(dead.root, folder / "out")))
    victim = shutil.copytree(dead.root / "step-1", folder / "victim" / "step-1")
    value = data.draw(changed(json.loads((run.root / name).read_bytes())))
    (run.root / name).write_text(with_digest(value))
    before = sorted(victim.rglob("*"))
    host = FakeHost()
    for act in (lambda: build_report(run), lambda: resume(run, host), lambda: build_report(run)):
        with suppress(SDPOError):
            act()
    assert sorted(victim.rglob("*")) == before
    assert sorted(path.name for path in folder.iterdir()) == ["out", "victim"]
    shutil.rmtree(folder)
