"""Values for each key of a config, right ones and wrong ones. YAML can express every one of them."""

from __future__ import annotations

import datetime
import math
from typing import Any

Path = tuple[str | int, ...]
Places = tuple[tuple[Path, tuple[Any, ...]], ...]
REMOVED = object()
JUNK: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    3,
    10**12,
    10**400,
    -0.5,
    0.5,
    1e300,
    math.nan,
    math.inf,
    -math.inf,
    "",
    " ",
    "1e-4",
    "nope",
    "\x00",
    "a\nb: c",
    "ünïcödé 😀",
    "../../etc",
    "x" * 5000,
    datetime.date(2024, 1, 1),
    b"\xff",
    [],
    {},
    [None],
    [[[]]],
    [3, "x"],
    ["nope"],
    {"nope": 1},
    {1: {None: [True]}},
    {"keys": 1, "items": 2, "get": 3},
    [{"path": None}],
)
NAMES = (
    "orca", "Orca", "ORCA", "step-1", "STEP-2", "step-2", "a" * 100, "a" * 101, "v1.0_a", "0", ".", "..", "...", ".hid",
    "../out", "a/b", "/abs", "a\\b", "C:", "con:", "a\nb", "orca\n", "a\x00b", "é", "１", "sdpo", "RUNS", "merged",
    "checkpoint-7", "Checkpoint-x", "-rf", "~", "$HOME", "a b", "",
)  # fmt: skip
RATES = (0, 0.1, 0.49, 0.5, 1, 5, 1e-4, "1e-4")
SOURCES: tuple[Any, ...] = (
    None,
    {},
    {"path": "/nope/x.jsonl"},
    {"path": 3},
    {"type": "chatml.intel"},
    "x.jsonl",
    [],
    {"pth": "x"},
)
FRACTIONS = ([0.5, 0.5], [0.333] * 3, [0.5], [1], [0.7, 0.7], [0, 1], [-1, 2], ["a"], ["0.5", 0.5], [math.nan, 1], 0.5)
STEP_KEYS: dict[str, tuple[Any, ...]] = {
    "name": NAMES,
    "datasets": ([], None, "x.jsonl", {}, {"path": "x"}, [None], [{}], [["x"]], [{1: 2}]),
    "learning_rate": RATES,
    "num_epochs": RATES,
    "max_steps": RATES,
    "rl_beta": RATES,
    "dpo_loss_type": (["sigmoid"], ["ipo"], ["exo_pair"], ["sigmoid", "sft"], "sigmoid", [1], [None]),
    "dpo_loss_weights": ([1.0], [0.5, 0.5], ["x"], 1.0, []),
    "dpo_label_smoothing": RATES,
    "dpo_ld_alpha": RATES,
    "micro_batch_size": RATES,
    "gradient_accumulation_steps": RATES,
    "sequence_len": (1, 64, 128, 10**6, 0, "64", 2.5),
    "lr_scheduler": ("cosine", "linear", "constant", ["cosine"]),
    "warmup_ratio": RATES,
    "warmup_steps": RATES,
    "weight_decay": RATES,
    "val_set_size": RATES,
    "test_datasets": ([{"path": "t.jsonl", "type": "chatml.intel"}], [{}], [3], "t.jsonl", {"path": "t.jsonl"}),
}
PARTITION_KEYS: dict[str, tuple[Any, ...]] = {
    "strategy": ("natural", "easy_to_hard", "random", "stratified", "Random", ["random"]),
    "unit": ("row", "source", "rows"),
    "score": ("log_ratio", "log_ratio_per_token", "gamma"),
    "num_steps": (1, 2, 5, 0, 2.0, 2.5, "2"),
    "fractions": FRACTIONS,
    "seed": (0, 1, 2**64, "7", 1.5),
}
BLOCK_KEYS: dict[str, tuple[Any, ...]] = {
    "steps": ([], [None], [{}], ["orca"], {"name": "orca"}, "orca"),
    "partition": ({"strategy": "natural"}, {"strategy": "random", "num_steps": 2}, {}, "random", ["random"]),
    "reference": ("previous", "base", "Base", "/nope/model", "../model", 3, ["base"]),
    "policy_init": ("previous", "base", "BASE", ["base"]),
    "export_steps": ("all", "last", "none", 1),
}
CONFLICTING = (
    "rl_adapter_ref_model", "dpo_use_liger_kernel", "relora", "reward_model", "process_reward_model", "processor_type",
    "streaming", "dpo_padding_free", "sample_packing",
    "fix_untrained_tokens", "neftune_noise_alpha", "fsdp", "fsdp_config", "use_ray",
)  # fmt: skip
TRUTHY = (True, False, 1, "yes", "no", "x", {"a": 1}, ["x"])
HOST_KEYS: dict[str, tuple[Any, ...]] = {
    "rl": ("sdpo", "dpo", "SDPO", "spdo", "kto", "orpo", ["sdpo"], {"sdpo": {}}),
    # The host itself takes nothing but a list here, and asks no plugin unless it can load it.
    "plugins": (
        [],
        ["sdpo_plugin.SDPOPlugin", "nope.Plugin"],
        ["sdpo_plugin.SDPOPlugin"] * 2,
        ["sdpo_plugin.SdpoPlugin"],
        ["sdpo_plugin.plugin.SDPOPlugin"],
    ),
    "trl": ({}, {"sync_ref_model": True}, {"sync_ref_model": "yes"}, {"beta": 0.2}, {"beta": "x"}, [["beta", 1]], 1),
    "dpo_loss_type": STEP_KEYS["dpo_loss_type"],
    "dpo_loss_weights": STEP_KEYS["dpo_loss_weights"],
    "dpo_label_smoothing": RATES,
    "rl_beta": RATES,
    "learning_rate": RATES,
    "micro_batch_size": RATES,
    "gradient_accumulation_steps": RATES,
    "sdop": ({}, {"reference": "base"}, True),
    "partition": PARTITION_KEYS["strategy"],
    "policy_init": BLOCK_KEYS["policy_init"],
    "num_epochs": RATES,
    "max_steps": (0, 1, 5, "5", 0.5),
    "val_set_size": RATES,
    "test_datasets": STEP_KEYS["test_datasets"],
    "warmup_steps": RATES,
    "warmup_ratio": RATES,
    "save_steps": RATES,
    "save_strategy": ("no", "steps", "epoch", "best", False),
    "save_total_limit": (0, 1, -1),
    "early_stopping_patience": (1, 3, 0),
    "resume_from_checkpoint": (True, False, "/nope/checkpoint-3"),
    "auto_resume_from_checkpoints": (True, False, "yes"),
    "output_dir": ("./elsewhere", "nested/a/b", "ünï", "with space"),
    "lora_model_dir": ("/nope/adapter", "x", ["x"]),
    "trainer_cls": ("my.Trainer", "sdpo_plugin.host.trainer.StepwiseDPOTrainer", ["x"]),
    "precompute_ref_log_probs": (True, False, "no", 0),
    "context_parallel_size": (1, 2, 0, "2", "many", [2], {"a": 2}),
    "tensor_parallel_size": (1, 2, "auto", 1.5, [2]),
    "pretraining_dataset": ("x", [{"path": "x"}], {"path": "x"}),
    **dict.fromkeys(CONFLICTING, TRUTHY),
}

BLOCKS: tuple[tuple[Path, dict[str, tuple[Any, ...]]], ...] = (
    (("sdpo",), BLOCK_KEYS),
    (("sdpo", "steps", 0), STEP_KEYS),
    (("sdpo", "steps", 1), STEP_KEYS),
    (("sdpo", "partition"), PARTITION_KEYS),
)
WHOLE_BLOCK: tuple[Any, ...] = ({}, None, "base", [], ["previous"], [{}], 0)
INSIDE: Places = (
    *((path, WHOLE_BLOCK) for path, _ in BLOCKS),
    (("sdpo", "steps", 0, "datasets", 0), SOURCES),
    (("sdpo", "steps", 1, "datasets", 0, "path"), (3, "", "/nope")),
    (("sdpo", "partition", "fractions", 0), RATES),
    (("sdpo", "steps", 1, "dpo_loss_type", 0), ("ipo", "nope", 3)),
)
DATA: Places = (
    (("datasets",), ([], {}, {"path": "x"}, "x", None, 3, [None], ["x"], [{}], [{"path": None}], [[{"path": "x"}]])),
    (("datasets", 0), SOURCES),
    (("datasets", 1, "path"), (3, "", "/nope", ["x"])),
    (("datasets", 0, "type"), ("nope", 3, {"field_prompt": "p"}, ["x"])),
    (("datasets", 1, "split"), ("train", 3, ["train"])),
)
