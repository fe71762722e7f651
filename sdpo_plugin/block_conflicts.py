"""Host keys that contradict what the `sdpo:` block says."""

from collections.abc import Mapping
from typing import Any

from sdpo_plugin.args import SDPOConfig
from sdpo_plugin.errors import ConfigError

TOKENS_OF_A_TILE = 32_768  # where a config does not say how many tiles there are
LORA_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel")


def check_block_conflicts(cfg: Mapping[str, Any], block: SDPOConfig) -> None:
    """Refuse host keys that contradict the block.

    Args:
        cfg: the host's config, with its defaults filled in.
        block: the `sdpo:` block.

    Raises:
        ConfigError: the key, the value seen, why, and what to set.
    """
    _check_tiles(cfg, block)
    _check_kernels(cfg, block)


def _check_tiles(cfg: Mapping[str, Any], block: SDPOConfig) -> None:
    """The host cuts a batch of (rows, tokens, d) into tiles of tokens, and hands their gradients on as if it were cut
    along its rows: the sums of a batch of several rows are wrong, and its loss is right. A packed batch is one row.
    DeepSpeed's tiles are right; the host has its own under DeepSpeed too where a tile is of a block of experts."""
    tiles, longest = cfg.get("tiled_mlp_num_shards"), cfg.get("sequence_len")
    if not cfg.get("tiled_mlp") or block.packed is True or tiles == 1:
        return
    if tiles is None and (longest is None or longest <= TOKENS_OF_A_TILE):
        return
    if cfg.get("deepspeed") and not (cfg.get("use_scattermoe") or cfg.get("model_config_type") == "gpt_oss"):
        return
    seen = f"tiled_mlp_num_shards: {tiles!r}" if tiles is not None else f"sequence_len: {longest!r}"
    raise ConfigError(
        f"tiled_mlp: True with {seen} and sdpo.packed: {str(block.packed).lower()} would train with wrong gradients "
        "where rows are padded: the host's tiles are made for batches of one row; set sdpo.packed: true, or "
        "tiled_mlp_num_shards: 1, or remove tiled_mlp."
    )


def _check_kernels(cfg: Mapping[str, Any], block: SDPOConfig) -> None:
    """The host applies them to every model that it loads, and ends where one has no adapter, as a reference."""
    kernels = [key for key in LORA_KERNELS if cfg.get(key)]
    if kernels and block.reference not in ("previous", "base"):
        remedy = ", ".join(f"{key}: false" for key in kernels)
        raise ConfigError(
            f"{kernels[0]}: True and sdpo.reference: {block.reference!r} exclude each other: the host would apply its "
            f"kernels for LoRA to the reference too, which has no adapter; set {remedy}."
        )
