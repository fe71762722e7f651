"""The shipped example configs as the host reads them, offline.

A config is loaded as it stands. What it names on a hub stands in the working directory under the same name, where the
host looks first: models without weights, and a few rows with the columns that the real sets have.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from integration_tests.harness.data import Row, pairs, write_rows
from integration_tests.harness.env import ROOT

# Models, with the architecture of each.
MODELS = {
    "models/solar-10.7b-sft": "llama",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama",
    "HuggingFaceH4/mistral-7b-sft-beta": "mistral",
    "teknium/OpenHermes-2.5-Mistral-7B": "mistral",
    "mlabonne/NeuralHermes-2.5-Mistral-7B": "mistral",
    "Qwen/Qwen2.5-1.5B-Instruct": "qwen2",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2",
    "example_configs/quickstart/build/base": "llama",
}
ADAPTERS = {"models/qwen2.5-1.5b-sft-lora": {"peft_type": "LORA", "r": 16, "lora_alpha": 32}}
SPECIAL = ["</s>", "<unk>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]  # that the configs name
# What `axolotl fetch deepspeed_configs` brings as zero3_bf16.json.
ZERO3_BF16: dict[str, Any] = {
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 0,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "max_live_parameters": 0,
        "max_reuse_distance": 0,
        "gather_16bit_weights_on_model_save": True,
    },
    "bf16": {"enabled": True},
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}


def _user(row: Row) -> Row:
    return {"role": "user", "content": row["question"]}


def _answer(row: Row, side: str) -> Row:
    return {"role": "assistant", "content": row[side]}


def _conversations(row: Row, *before: Row) -> Row:
    return {side: [*before, _user(row), _answer(row, side)] for side in ("chosen", "rejected")}


def _quickstart(row: Row) -> Row:
    return {"messages": [_user(row)], "chosen": _answer(row, "chosen"), "rejected": _answer(row, "rejected")}


def _ultrafeedback(row: Row) -> Row:
    conversations = _conversations(row)
    other = {"score_chosen": 8.0, "score_rejected": 3.0, "source": "evol_instruct"}
    return {"prompt": row["question"], "prompt_id": "0", "messages": conversations["chosen"], **conversations, **other}


def _capybara(row: Row) -> Row:
    turn = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "good morning"}]
    return {"source": "TheoremQA", "prompt": row["question"], **_conversations(row, *turn)}


def _math(row: Row) -> Row:
    answers = {f"{side}_response": row[side] for side in ("chosen", "rejected")}
    return {"metadata": "{}", "instruction": row["question"], **answers, "chosen_rating": 9.0, "rejected_rating": 4.0}


def _truthy(row: Row) -> Row:
    answers = {side: row[side] for side in ("chosen", "rejected")}
    return {"id": "0", "source": "truthy", "system": "be kind", "prompt": row["question"], **answers}


def _openorca(row: Row) -> Row:
    return {"prompt": row["question"], **_conversations(row, {"role": "system", "content": "be kind"})}


# Data sets: the splits that configs name, and a row with the columns of the data set's card.
DATASETS: dict[str, tuple[tuple[str, ...], Callable[[Row], Row]]] = {
    "Intel/orca_dpo_pairs": (("train",), lambda row: {"system": "be kind", **row}),
    "HuggingFaceH4/orca_dpo_pairs": (("train_prefs", "test_prefs"), _openorca),
    "allenai/ultrafeedback_binarized_cleaned": (("train_prefs", "test_prefs"), _ultrafeedback),
    "argilla/distilabel-capybara-dpo-7k-binarized": (("train",), _capybara),
    "argilla/distilabel-math-preference-dpo": (("train",), _math),
    "jondurbin/truthy-dpo-v0.1": (("train",), _truthy),
    **{
        f"example_configs/quickstart/build/{name}.jsonl": (("train",), _quickstart)
        for name in ("easy", "hard", "easy_test", "hard_test")
    },
}
ROWS = 12


def make_hub(folder: str) -> None:
    """Write everything that the configs name below `folder`. Runs in the child."""
    from transformers import AutoConfig

    from integration_tests.harness.models import ARCHITECTURES, build_tokenizer

    hub = Path(folder)
    tokenizer = build_tokenizer(384)
    tokenizer.add_tokens(SPECIAL, special_tokens=True)
    for name, arch in MODELS.items():
        AutoConfig.for_model(arch, **ARCHITECTURES[arch], vocab_size=512).save_pretrained(hub / name)
        tokenizer.save_pretrained(hub / name)
    for name, adapter in ADAPTERS.items():
        (hub / name).mkdir()
        (hub / name / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    for number, (name, (splits, make)) in enumerate(DATASETS.items()):
        for offset, split in enumerate(splits):
            rows = [make(row) for row in pairs(ROWS, seed=10 * number + offset)]
            in_repository = hub / name / "data" / f"{split}-00000-of-00001.jsonl"
            write_rows(hub / name if name.endswith(".jsonl") else in_repository, rows)
    deepspeed = hub / "deepspeed_configs" / "zero3_bf16.json"
    deepspeed.parent.mkdir()
    deepspeed.write_text(json.dumps(ZERO3_BF16), encoding="utf-8")


def read(config: str, hub: str, command: str) -> dict[str, Any]:
    """Start a config as its header says, up to the launcher, then load it on the machine that this asks for.

    Runs in the child.

    Returns:
        What ``launch`` and ``load`` return.
    """
    launched = launch(command)
    return {"launched": launched, **load(config, hub, launched["processes"])}


def launch(command: str) -> dict[str, Any]:
    """The config, launcher and processes that this command would start, given in the repository's root."""
    from unittest.mock import patch

    from accelerate.commands.launch import launch_command_parser
    from axolotl.cli import main

    program, subcommand, *arguments = shlex.split(command)
    assert (program, subcommand) == ("axolotl", "train")
    here = Path.cwd()
    os.chdir(ROOT)
    with patch.object(main, "launch_training") as launch_training:
        main.train.main(args=arguments, standalone_mode=False)
    os.chdir(here)
    config, launcher, _, _, launcher_args, _ = launch_training.call_args.args
    processes = 1
    if launcher == "accelerate":
        processes = launch_command_parser().parse_args([*launcher_args, "-m", "axolotl.cli.train"]).num_processes
    return {"config": config, "launcher": launcher, "processes": processes}


def load(config: str, hub: str, processes: int) -> dict[str, Any]:
    """Load a config as `axolotl preprocess` does on a machine with so many H100s, and lay out its steps.

    Returns:
        The validated `rl`, `trainer_cls`, `sdpo`, `datasets` and `test_datasets`; `known`, the top-level keys that the
        host and the plugin know; `plan`, the steps as `axolotl preprocess` prints them; and `rows`, the first row of
        each source, with its template applied.
    """
    from unittest.mock import patch

    import torch
    from axolotl.cli import config as cli_config
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.data import rl

    for entry in Path(hub).iterdir():
        Path(entry.name).symlink_to(entry)
    os.environ["AXOLOTL_IS_PREPROCESS"] = "1"  # as `axolotl preprocess` does: no process group is started
    node = {"bf16": True, "fp8": True, "tf32": True, "n_gpu": processes, "compute_capability": "sm_90"}
    capabilities = (node, {"torch_version": str(torch.__version__).split("+")[0]})
    with patch.object(cli_config, "gpu_capabilities", lambda: capabilities):
        cfg = cli_config.load_cfg(config, is_preprocess=True, dataset_num_proc=0)  # 0: map in this process
    manager = PluginManager.get_instance()
    with patch.object(rl, "save_preprocessed_dataset"):  # would start a pool of processes to save 12 rows
        assert manager.load_datasets(cfg, preprocess=True) is not None
    keys = ("rl", "trainer_cls", "sdpo", "datasets", "test_datasets")
    validated = {key: cfg[key].to_dict() if isinstance(cfg[key], Mapping) else cfg[key] for key in keys}
    sources = manager.plugins["sdpo_plugin.SDPOPlugin"]._hooks._sources  # what the hook has just loaded
    columns = ("prompt", "chosen", "rejected")
    rows = [{column: source.train[0][column] for column in columns} for source in sources if not source.is_awaited]
    return validated | {"known": _known_keys(), "plan": _plan(cfg, sources), "rows": rows}


def _known_keys() -> list[str]:
    from axolotl.utils.schemas.config import AxolotlInputConfig

    from sdpo_plugin.args import SDPOArgs

    known: set[str] = set()
    for name, field in {**AxolotlInputConfig.model_fields, **SDPOArgs.model_fields}.items():
        names = getattr(field.validation_alias, "choices", [field.validation_alias])
        known.update(key for key in (name, field.alias, *names) if isinstance(key, str))
    return sorted(known)


def _plan(cfg: Any, sources: Any) -> list[dict[str, Any]]:
    from sdpo_plugin.block import parse_block
    from sdpo_plugin.host.data.planning import preview

    plan = preview(cfg, parse_block(cfg.sdpo.to_dict()), sources)
    keys = ("name", "num_rows", "is_awaited", "num_heldout", "reference", "policy_init", "settings")
    return [{key: getattr(step, key) for key in keys} for step in plan.steps]
