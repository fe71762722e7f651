"""Host keys that contradict what the `sdpo:` block says."""

from typing import Any

import pytest

from sdpo_plugin.block import parse_block
from sdpo_plugin.block_conflicts import LORA_KERNELS, check_block_conflicts
from sdpo_plugin.errors import ConfigError


def refusal(cfg: dict[str, Any], block: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_block_conflicts(cfg, parse_block(block))
    return str(caught.value)


@pytest.mark.parametrize(
    ("keys", "seen"),
    [
        ({"tiled_mlp_num_shards": 2}, "tiled_mlp_num_shards: 2"),
        ({"tiled_mlp_num_shards": 4, "sequence_len": 512}, "tiled_mlp_num_shards: 4"),
        ({"sequence_len": 32_769}, "sequence_len: 32769"),
        ({"tiled_mlp_num_shards": 2, "deepspeed": {}}, "tiled_mlp_num_shards: 2"),
        ({"tiled_mlp_num_shards": 2, "deepspeed": "zero3.json", "use_scattermoe": True}, "tiled_mlp_num_shards: 2"),
        (
            {"tiled_mlp_num_shards": 2, "deepspeed": "zero3.json", "model_config_type": "gpt_oss"},
            "tiled_mlp_num_shards: 2",
        ),
    ],
)
@pytest.mark.parametrize(("packed", "said"), [("auto", "auto"), (False, "false")])
def test_tiles_of_padded_rows_are_refused(keys: dict[str, Any], seen: str, packed: bool | str, said: str) -> None:
    assert refusal({"tiled_mlp": True, **keys}, {"packed": packed}) == (
        f"tiled_mlp: True with {seen} and sdpo.packed: {said} would train with wrong gradients where rows are padded: "
        "the host's tiles are made for batches of one row; set sdpo.packed: true, or tiled_mlp_num_shards: 1, or "
        "remove tiled_mlp."
    )


@pytest.mark.parametrize(
    ("cfg", "packed"),
    [
        ({"tiled_mlp": True, "tiled_mlp_num_shards": 4}, True),
        ({"tiled_mlp": True, "tiled_mlp_num_shards": 1, "sequence_len": 100_000}, "auto"),
        ({"tiled_mlp": True, "sequence_len": 32_768}, "auto"),  # one tile
        ({"tiled_mlp": True}, "auto"),
        ({"tiled_mlp": True, "tiled_mlp_num_shards": 4, "deepspeed": "zero3.json"}, "auto"),  # DeepSpeed's own
        ({"tiled_mlp": False, "tiled_mlp_num_shards": 4}, "auto"),
        ({"tiled_mlp_num_shards": 4}, False),
    ],
)
def test_other_tiles_pass(cfg: dict[str, Any], packed: bool | str) -> None:
    check_block_conflicts(cfg, parse_block({"packed": packed}))


@pytest.mark.parametrize("kernel", LORA_KERNELS)
def test_kernels_for_lora_are_refused_beside_an_external_reference(kernel: str) -> None:
    assert refusal({kernel: True, "adapter": "lora"}, {"reference": "./sft"}) == (
        f"{kernel}: True and sdpo.reference: './sft' exclude each other: the host would apply its kernels for LoRA to "
        f"the reference too, which has no adapter; set {kernel}: false."
    )
    check_block_conflicts({kernel: False}, parse_block({"reference": "./sft"}))
    for reference in ("previous", "base"):
        check_block_conflicts({kernel: True}, parse_block({"reference": reference}))


def test_all_kernels_are_named() -> None:
    said = refusal({"lora_qkv_kernel": True, "lora_o_kernel": True}, {"reference": "some/model"})
    assert said.endswith("; set lora_qkv_kernel: false, lora_o_kernel: false.")
