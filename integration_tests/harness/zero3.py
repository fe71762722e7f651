"""DeepSpeed ZeRO-3 on CPU ranks: no offload, float32, weights gathered when a model is saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 0,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": 0,  # tiny models: keep none whole, or little would be partitioned at all
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "bf16": {"enabled": False},
    "fp16": {"enabled": False},
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}


def write_zero3(path: Path, sections: Mapping[str, Any] | None = None, **zero: Any) -> Path:
    """Write the DeepSpeed config a run names under `deepspeed:`.

    `zero` overrides fields of its ZeRO part, None takes one out; `sections` are further top-level sections.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {key: value for key, value in (CONFIG["zero_optimization"] | zero).items() if value is not None}
    config = CONFIG | {"zero_optimization": fields} | dict(sections or {})
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return path
