"""`sdpo.reference_cache`: a second run over the same data and base makes no pass, and ends with the same bits."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from integration_tests.harness.compare import apart
from integration_tests.harness.data import Config, base_config, lora_config, write_config
from integration_tests.harness.launch import Host
from integration_tests.harness.results import Result
from integration_tests.harness.sdpo import read_report, sdpo_config
from sdpo_plugin.run_dir.table_files import load_table

BLOCK = {"reference": "base", "diagnostics": {"matrix": False}}
READ = re.compile(r"log-probs of (\S+) under M_0: read from")


def passes(result: Result) -> list[str]:
    """The passes that a run has made, by the set of rows."""
    return list(dict.fromkeys(re.findall(r"log-probs of (.+?) by M_\d", result.check().log_text)))


class Runs:
    """Runs of one base model and two sets that share a cache, each in a directory of its own."""

    def __init__(self, host: Host, base: Config, folder: Path, ranks: int = 1) -> None:
        self.host, self.base, self.folder, self.ranks, self.number = host, base, folder, ranks, 0

    def train(self, cached: bool = True, **changes: Any) -> tuple[Result, Path]:
        """Run with some keys changed, to the end; the result, and the output directory."""
        self.number += 1
        out = self.folder / f"run-{self.number}" / "out"
        block = BLOCK | ({"reference_cache": str(self.folder / "cache")} if cached else {})
        config = sdpo_config(self.base | {"output_dir": str(out)} | changes, sdpo=block)
        path = write_config(out.parent / "config.yaml", config)
        return self.host.train(path, ranks=self.ranks, init_seed=self.number).check(), out

    @property
    def files(self) -> list[Path]:
        """The tables in the cache."""
        return sorted((self.folder / "cache").iterdir())


@pytest.fixture(scope="module")
def runs(host: Host, model: Path, two_sets: list[Config], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Full fine-tuning, of which one run has been made."""
    folder = tmp_path_factory.mktemp("cache")
    made = Runs(host, base_config(model, two_sets, folder), folder)
    result, out = made.train()
    assert passes(result) == ["D_1", "D_2"]
    assert len(made.files) == 2
    assert read_report(out)["from_cache"] == []
    return made


def test_another_beta_and_order_of_entries_make_no_pass(runs: Runs) -> None:
    """And the weights are those of a run without a cache."""
    changes = {"rl_beta": 0.3, "datasets": runs.base["datasets"][::-1]}
    result, out = runs.train(**changes)
    assert passes(result) == []
    assert READ.findall(result.log_text) == ["D_1", "D_2"]
    assert read_report(out)["from_cache"] == [f"sdpo/reference/step-{step}.safetensors" for step in (1, 2)]
    plain, alone = runs.train(cached=False, **changes)
    assert passes(plain) == ["D_1", "D_2"]
    assert apart(out, alone) == 0.0
    assert apart(out / "step-1", alone / "step-1") == 0.0
    for name in ("step-1", "step-2"):
        read, computed = (load_table(at / "sdpo/reference" / f"{name}.safetensors") for at in (out, alone))
        assert read.digest() == computed.digest()


def test_changed_weights_rows_or_template_make_tables_of_their_own(runs: Runs) -> None:
    """A single byte of the weights, in the middle of a file that is not read whole elsewhere."""
    before = len(runs.files)
    base = Path(shutil.copytree(runs.base["base_model"], runs.folder / "base"))
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[len(weights) // 2 // 4 * 4] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    first, second = (dict(entry) for entry in runs.base["datasets"])
    rows = Path(first["path"]).read_text(encoding="utf-8").splitlines(keepends=True)
    (runs.folder / "d1.jsonl").write_text("".join(rows[:-3]), encoding="utf-8")
    other = [first | {"path": str(runs.folder / "d1.jsonl")}, second]
    made = []
    for changes in ({"base_model": str(base)}, {"datasets": other}, {"chat_template": "llama3"}):
        made.append(passes(runs.train(**changes)[0]))
    # The type of D_2 has a template of its own.
    assert made == [["D_1", "D_2"], ["D_1"], ["D_1"]]
    assert len(runs.files) == before + sum(map(len, made))


def test_damaged_table_is_named_and_made_again(runs: Runs) -> None:
    expected = {path: load_table(path).digest() for path in runs.files}
    whole, clean = runs.train(rl_beta=0.5)
    used = [path for path in runs.files if str(path) in whole.log_text]
    assert len(used) == 2
    data = bytearray(used[0].read_bytes())
    data[-1] ^= 1
    used[0].write_bytes(data)
    result, out = runs.train(rl_beta=0.5)
    assert len(passes(result)) == 1
    said = f"sdpo.reference_cache: {used[0]}: the reference table does not fit its digest; the file is damaged"
    assert said in result.log_text
    assert {path: load_table(path).digest() for path in runs.files} == expected
    assert apart(out, clean) == 0.0


def test_lora_on_two_ranks(host: Host, model: Path, two_sets: list[Config], tmp_path: Path) -> None:
    """Each process draws an adapter of its own, whose log-probs are those of the base model. Rank 0 decides."""
    made = Runs(host, lora_config(model, two_sets, tmp_path), tmp_path, ranks=2)
    assert passes(made.train()[0]) == ["D_1", "D_2"]
    result, out = made.train(rl_beta=0.3)
    assert passes(result) == []
    assert len(read_report(out)["from_cache"]) == 2
