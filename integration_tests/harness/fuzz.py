"""Mutated configs, one after the other in one process, through all that the command line does before data are read."""

from __future__ import annotations

import copy
import functools
import logging
import math
import os
import re
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import axolotl.integrations.config
import axolotl.train
import axolotl.utils.config
import yaml
from axolotl.cli.config import load_cfg
from axolotl.integrations.base import PluginManager
from axolotl.utils.dict import DictDefault
from axolotl.utils.tee import close_debug_log
from hypothesis import HealthCheck, given, settings

import sdpo_plugin
import sdpo_plugin.host.data.loading
from integration_tests.harness.data import Config
from integration_tests.harness.mutations import Case, cases
from integration_tests.harness.spoilt import REMOVED
from sdpo_plugin.block import parse_block
from sdpo_plugin.errors import SDPOError
from sdpo_plugin.steps_args import step_names

OURS = Path(sdpo_plugin.__file__).parent
HOSTS_OWN = axolotl.train.setup_reference_model


class _DataReached(BaseException):
    """The config is good enough to read data; no handler of ours or the host's may hold it."""


def _reached(*_: Any, **__: Any) -> NoReturn:
    raise _DataReached


@contextmanager
def bench() -> Iterator[None]:
    """Make a config cost milliseconds: no log, no reading of data, and the host's schema built once."""
    build = axolotl.integrations.config.merge_input_args
    cached = functools.cache(lambda _names: build())

    def schema() -> Any:
        return cached(tuple(PluginManager.get_instance().get_input_args()))

    axolotl.utils.config.merge_input_args = schema
    vars(sdpo_plugin.host.data.loading)["load_preference_datasets"] = _reached
    logging.disable(logging.CRITICAL)
    environment = dict(os.environ)
    os.environ["AXOLOTL_TEE_STDOUT"] = "0"  # the host's lock would wait for itself where its log is closed
    try:
        yield
    finally:
        axolotl.utils.config.merge_input_args = build
        logging.disable(logging.NOTSET)
        os.environ.clear()
        os.environ.update(environment)


def _fresh_process() -> None:
    """Forget the config before this one."""
    PluginManager.get_instance().plugins.clear()
    close_debug_log()
    axolotl.train.setup_reference_model = HOSTS_OWN


def judge(file: Path, case: Case) -> str:
    """Take one config to where data would be read; return `valid`, or who refused it: `ours` or `host`.

    Raises:
        AssertionError: it ended in any other way.
    """
    _fresh_process()
    cfg = None
    try:
        cfg = load_cfg(str(file))
        _check_valid(cfg)
        PluginManager.get_instance().load_datasets(cfg)
    except _DataReached:
        return "valid"
    except SDPOError as error:
        _check_message(str(error), case, shows_value=cfg is None)  # later it is the host's reading of the value
        return _refused("ours", by_register=cfg is None)
    except Exception as error:  # the host's own
        _check_not_ours(error)
        if _is_sdpo(case.config):  # how it ends a config of another kind is its own affair
            if isinstance(error, ValueError):  # pydantic's ValidationError is one
                _check_message(str(error), case, shows_value=False)
            elif not (isinstance(error, ImportError) and "nope" in str(error)):
                raise  # Axolotl 0.21 ends over a plugin that is listed and not there
        return _refused("host", by_register=cfg is None)
    return "valid"


def _refused(who: str, by_register: bool) -> str:
    """A refused config leaves no patch; one that is refused with its data is undone by the next `register`."""
    if by_register:
        assert axolotl.train.setup_reference_model is HOSTS_OWN, "the patch has outlived the refused config"
    return who


def _check_not_ours(error: Exception) -> None:
    frames = traceback.extract_tb(error.__traceback__)
    assert not any(Path(frame.filename).is_relative_to(OURS) for frame in frames), "a traceback from inside the plugin"


def _is_sdpo(config: Config) -> bool:
    return config.get("rl") == "sdpo" and any(name.startswith("sdpo_plugin.") for name in config.get("plugins") or ())


def _check_message(message: str, case: Case, shows_value: bool) -> None:
    """One of the mutated keys is named; where there is one mutation, of a scalar, so is its value if that is asked."""
    keys = {key for mutation in case.mutations for key in (mutation.key, *_inside(mutation.value))}
    assert any(_names(message, key) for key in keys), f"none of {sorted(keys)} is named in: {message}"
    if shows_value and len(case.mutations) == 1:
        path, value = case.mutations[0].path, case.mutations[0].value
        # A key that is no word is what is wrong, whatever stands at it.
        if isinstance(path[-1], str) and isinstance(value, str | int | float):
            assert any(text in message for text in _spellings(value)), f"the value {value!r} is not in: {message}"


def _spellings(value: str | float) -> set[str]:
    """A scalar as it is written, and as the schema reads it: '1e-4' is a number, and False is 0."""
    spellings = {repr(value), str(value)}
    with suppress(ValueError, OverflowError):
        number = float(value)
        spellings |= {repr(number), f"{number:.0f}"} if math.isfinite(number) else {repr(number)}
    return spellings


def _inside(value: Any) -> set[str]:
    """The keys that a mutation has brought along."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    own = {key for key in value if isinstance(key, str)} if isinstance(value, dict) else set()
    return own.union(*map(_inside, inner))


def _names(message: str, key: str) -> bool:
    pattern = rf"(?<![A-Za-z0-9_]){re.escape(key)}(?![A-Za-z0-9_])"
    dotted = message.replace(".", "_")  # Axolotl 0.21 has some keys in blocks: context_parallel.size
    return bool(re.search(pattern, message) or re.search(pattern, dotted)) or repr(key) in message


def _check_valid(cfg: DictDefault) -> None:
    """Check all that must hold of a config that was not refused."""
    if cfg.trainer_cls != "sdpo_plugin.host.trainer.StepwiseDPOTrainer":
        assert axolotl.train.setup_reference_model is HOSTS_OWN, "patched for a config that is not sdpo"
        return
    block = parse_block(cfg.sdpo.to_dict() if cfg.sdpo else None)
    names = step_names(block.steps or [])
    out = Path(cfg.output_dir).resolve()
    for name in names:
        inside = Path(os.path.normpath(out / name))
        assert inside.parent == out, f"{name!r} leaves the output directory"
        assert inside.name == name, f"{name!r} leaves the output directory"
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z", name), f"{name!r} is no plain file name"
    assert len({name.casefold() for name in names}) == len(names), f"{names} are not distinct"
    _check_idempotent(cfg)


def _check_idempotent(cfg: DictDefault) -> None:
    again = copy.deepcopy(cfg)
    for plugin in PluginManager.get_instance().plugins.values():
        plugin.register(again)
    assert repr(again.to_dict()) == repr(cfg.to_dict()), "a second register changes the config"
    patched = axolotl.train.setup_reference_model
    assert patched is not HOSTS_OWN, "a second register takes the patch away"
    assert patched.__wrapped__ is HOSTS_OWN, "a second register patches the patch"


def _describe(case: Case, text: str) -> str:
    changes = [f"{m.path} = {'removed' if m.value is REMOVED else repr(m.value)[:200]}" for m in case.mutations]
    return "\n".join(["", *changes, "", text, traceback.format_exc()])


def fuzz(good: list[Config], examples: int) -> dict[str, Any]:
    """Judge mutations of these configs. Runs in the child, in whose folder it writes.

    Returns:
        How many configs were `valid`, refused by `ours` and by `host`; how many were `distinct`; the `seconds`; and
        the `failure`, with the smallest config that shows it, if there is one.
    """
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    file = Path("config.yaml").resolve()

    @settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=examples,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(good))
    def every_config_is_valid_or_refused(case: Case) -> None:
        text = yaml.safe_dump(case.config, sort_keys=False)
        if text in seen:
            return
        file.write_text(text, encoding="utf-8")
        try:
            counts[judge(file, case)] += 1
        except Exception as error:  # whatever it is, it is what is looked for
            raise AssertionError(_describe(case, text)) from error
        seen.add(text)  # not before: hypothesis runs a failure again, and must see it again

    start, failure = time.monotonic(), None
    with bench():
        for config in good:
            file.write_text(yaml.safe_dump(config), encoding="utf-8")
            assert judge(file, Case(config, ())) == "valid", config
        try:
            every_config_is_valid_or_refused()
        except AssertionError as error:
            failure = str(error)
    _fresh_process()
    return {**counts, "distinct": len(seen), "seconds": round(time.monotonic() - start, 1), "failure": failure}
