"""The longest row that each architecture takes, found by trying, and the limit that the plugin finds."""

from __future__ import annotations

from typing import Any

SIZE = 48  # what the config says
_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
_GPT = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": SIZE}
_NO_CONFIG = {"hidden_size": 16, "n_layer": 1, "n_head": 2}
_LONG = _BERT | {"max_position_embeddings": SIZE}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gptj": _GPT | {"rotary_dim": 4},
    "codegen": _GPT | {"rotary_dim": 4, "n_head": 4},
    "ctrl": _GPT | {"dff": 32},
    "gpt_neo": {
        **{"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_position_embeddings": SIZE},
        "attention_types": [[["global", "local"], 1]],
    },
    "opt": _LONG | {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "biogpt": _LONG,
    "roformer": _LONG | {"is_decoder": True},
    "xglm": {"d_model": 16, "num_layers": 1, "attention_heads": 2, "ffn_dim": 32, "max_position_embeddings": SIZE},
    "bloom": _NO_CONFIG,
    "llama": _LONG,
    "mistral": _LONG | {"num_key_value_heads": 1},
    "qwen2": _LONG | {"num_key_value_heads": 1},
    "gpt_neox": _LONG,
    "phi": _LONG,
    "falcon": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": SIZE},
}


def _takes(model: Any, length: int) -> bool:
    import torch

    try:
        with torch.no_grad():
            model(input_ids=torch.full((1, length), 7), attention_mask=torch.ones(1, length, dtype=torch.long))
    except (IndexError, RuntimeError):
        return False
    return True


def limits() -> dict[str, dict[str, Any]]:
    """For each architecture: the limit that is found, whether tables are looked for, and what it really takes.

    `taken` are the lengths that go through of those around the config's, and four times that. Runs in the child.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from sdpo_plugin.host.forward.positions import PROBE, _may_be_too_small, position_limit

    found = {}
    for arch, fields in CONFIGS.items():
        ids = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 2}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **fields, **ids)).eval()
        row = torch.full((2, PROBE), 7)
        inputs = {"input_ids": row, "attention_mask": torch.ones_like(row), "use_cache": False}
        found[arch] = {
            "limit": position_limit(model.config, lambda model=model, inputs=inputs: model(**inputs)),
            "looked for": _may_be_too_small(model, SIZE + 1),
            "taken": [length for length in (SIZE, SIZE + 1, 4 * SIZE) if _takes(model, length)],
        }
    return found


def scalings() -> dict[str, dict[str, Any]]:
    """What is said of rows of these lengths, by the scaling of a model's rotary positions; None: nothing. And how far
    the logits of a row of 10 tokens are moved by one of 40 tokens in its batch.

    The models are made for 16 tokens: rows of at most so many, of both kinds, and of more. Runs in the child.
    """
    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from integration_tests.harness.packed import MODELS, POSITIONS
    from sdpo_plugin.errors import DataError
    from sdpo_plugin.host.forward.rotary import require_own_positions

    def said(model: Any, alone: bool, *sets: list[int]) -> str | None:
        lengths = {f"D_{number}": np.array(rows) for number, rows in enumerate(sets, 1)}
        try:
            require_own_positions(model, lengths, "the model", alone=alone)
        except DataError as error:
            return str(error)
        return None

    found = {}
    ids = torch.randint(3, 64, (2, 40), generator=torch.Generator().manual_seed(0))
    for kind, scaling in POSITIONS.items():
        rope = {"rope_type": kind, **scaling}
        for arch in ("llama", "gemma3_text"):
            config = AutoConfig.for_model(arch, **MODELS[arch] | {"max_position_embeddings": 16})
            if arch == "gemma3_text":
                config.layer_types = ["sliding_attention", "full_attention"]
            one_a_type = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}, "full_attention": rope}
            config.rope_parameters = rope if arch == "llama" else one_a_type
            config.initializer_range = 0.5
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
            with torch.no_grad():
                own, beside = (model(rows, use_cache=False).logits[:1, :10] for rows in (ids[:1, :10], ids))
            found[f"{arch} {kind}"] = {
                "shorter": said(model, False, [5, 16], [7]),
                "both": said(model, False, [5, 16], [17, 7, 40]),
                "alone": said(model, True, [5, 16], [17, 7, 40]),
                "longer": said(model, False, [17, 20], [40]),
                "moved": float((own - beside).abs().max()),
            }
    return found
