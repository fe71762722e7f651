"""FSDP2 on CPU ranks: in float32, weights gathered when a model is saved."""

from __future__ import annotations

from typing import Any


def fsdp2(**fields: Any) -> dict[str, Any]:
    """The overrides that run a config of Llamas under FSDP2; `fields` are of `fsdp_config`."""
    config = {
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
        "state_dict_type": "FULL_STATE_DICT",
        "reshard_after_forward": True,
        "offload_params": False,
        "cpu_ram_efficient_loading": False,
    }
    return {"fsdp_version": 2, "fsdp_config": config | fields}


# What users of large models set: rank 0 alone reads the model, checkpoints are written in parts.
LARGE = {
    "cpu_ram_efficient_loading": True,
    "activation_checkpointing": True,
    "state_dict_type": "SHARDED_STATE_DICT",
    "final_state_dict_type": "FULL_STATE_DICT",
}
