"""The packed forward pass beside TRL's padded one, on models of many architectures; runs in a fork."""

from __future__ import annotations

import copy
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Tiny and random, with weights large enough for what acts on scores to be seen. A sliding window is shorter than the
# longest row, so that it has to be seen too.
SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"initializer_range": 0.2}
GROUPED = SMALL | {"num_key_value_heads": 2, "max_position_embeddings": 128}
MODELS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 7},
    "qwen2": GROUPED | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "qwen3": GROUPED | {"head_dim": 8},
    "gemma": GROUPED | {"head_dim": 8},
    "gemma2": GROUPED
    | {"head_dim": 8, "sliding_window": 7, "attn_logit_softcapping": 0.2, "final_logit_softcapping": 1.0},
    "gemma3_text": GROUPED | {"head_dim": 8, "sliding_window": 7},
    "phi3": GROUPED | {"pad_token_id": 0},
    "olmo2": GROUPED,
    "granite": GROUPED | {"attention_multiplier": 0.5},  # and not one over the root of the head size
    "mixtral": GROUPED | {"num_local_experts": 4},
    "qwen3_moe": GROUPED | {"head_dim": 8, "num_experts": 4, "moe_intermediate_size": 24, "num_experts_per_tok": 2},
    "gpt_oss": GROUPED
    | {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_neox": SMALL | {"max_position_embeddings": 128},
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "opt": {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {
        "max_position_embeddings": 128,
        "word_embed_proj_dim": 32,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
    },
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gpt_neo": {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global"], 2]],
    },
    "mpt": {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4},
    "falcon": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "lfm2": GROUPED | {"layer_types": ["conv", "full_attention"]},
    "mamba": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2},
}
# What a Llama's positions are scaled by. Two of them scale by the longest row of a batch, where it is beyond 16 tokens.
SCALED = {"factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16}
POSITIONS: dict[str, dict[str, Any]] = {
    "linear": SCALED,
    "dynamic": SCALED,
    "yarn": SCALED,
    "llama3": SCALED | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": SCALED | {"short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0]},
}
MAX_LENGTH = 24
THREE_TOKENS = 3 * 4 * 64  # bytes of their logits
# prompt, chosen and rejected tokens: one-token answers and prompts, rows at the limit and beyond it
LENGTHS = ((5, 7, 3), (1, 1, 1), (12, 1, 9), (9, 15, 2), (3, 30, 21), (6, 4, 4))


def rows() -> list[dict[str, list[int]]]:
    """Pairs of those lengths; the last two answers are equal, the first two share a beginning."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> list[int]:
        return torch.randint(3, 64, (count,), generator=generator).tolist()

    made = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), map(draw, parts), strict=True)) for parts in LENGTHS]
    made[0]["rejected_ids"][:2] = made[0]["chosen_ids"][:2]
    made[-1]["rejected_ids"] = list(made[-1]["chosen_ids"])
    return made


def compare(kind: str, attention: str = "sdpa", mode: str = "") -> dict[str, Any]:
    """Log-probs and gradients of one batch by both forward passes.

    Args:
        kind: of `MODELS`, or "llama" and one of `POSITIONS`.
        attention: that the model is loaded with.
        mode: "checkpointing" or "reentrant checkpointing": of gradients; "kernel": a GPU's for all pairs at once,
            whose place one in plain PyTorch takes; "parts": the logits of 3 tokens at once; "sdpa_varlen": the host's
            SDPA, which looks for texts in the positions of a row.

    Returns:
        ``takes``: whether the model takes packed rows at all; if so, the largest differences of a log-prob, of a
        gradient and of a weight after three updates, the largest log-prob and the largest move of a weight, and
        ``leaks``: how far the log-probs of one text move with another text.
    """
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    from sdpo_plugin.host.forward import head, varlen
    from sdpo_plugin.host.forward.attention import packed_attention
    from sdpo_plugin.host.forward.packed import no_way_in
    from sdpo_plugin.host.forward.packing import PackingCollator

    model = build(kind, attention)
    called: list[int] = []
    if mode == "kernel":
        varlen.kernel_for = lambda *states: partial(kernel, called)
    elif mode == "sdpa_varlen":
        from axolotl.monkeypatch.attention.sdpa_varlen import patch_sdpa_varlen

        assert patch_sdpa_varlen()
    elif mode == "parts":
        head.LOGITS_AT_ONCE = THREE_TOKENS
        assert head.read_in_parts(model)
    elif mode:
        model.gradient_checkpointing_enable({"use_reentrant": mode.startswith("reentrant")})
        model.enable_input_require_grads()
    with packed_attention(model) as takes:
        if no_way_in(model, takes):
            return {"takes": False}
        padded = log_probs(model, DataCollatorForPreference(0, MAX_LENGTH)(rows()))
        by_padded = gradients(model, padded)
        packing = PackingCollator(MAX_LENGTH)
        packed = log_probs(model, packing(rows()))
        by_packed = gradients(model, packed)
        ends = [trained(model, collate(rows())) for collate in (DataCollatorForPreference(0, MAX_LENGTH), packing)]
        found = {
            "takes": True,
            "log-probs": float((padded - packed).detach().abs().max()),
            "gradients": max(float((one - other).abs().max()) for one, other in zip(by_padded, by_packed, strict=True)),
            "weights": float((ends[0] - ends[1]).abs().max()),
            "moved": float((ends[0] - flat(model)).abs().max()),
            "largest": float(padded.detach().abs().max()),
            "calls": len(called),
            "leaks": leaks(model, packing),
            "alone": max(alone(model, packing, row) for row in rows()),
        }
    assert model.config._attn_implementation == attention, "the model has its own attention back"
    return found


def alone(model: Any, packing: Any, row: dict[str, list[int]]) -> float:
    """How far log-probs and gradients of a batch of one pair are from those of its padded rows."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    found = [log_probs(model, collate([row])) for collate in (DataCollatorForPreference(0, MAX_LENGTH), packing)]
    padded, packed = (gradients(model, one) for one in found)
    off = [float((one - other).abs().max()) for one, other in zip(padded, packed, strict=True)]
    return max(*off, float((found[0] - found[1]).detach().abs().max()))


def most_logits(kind: str) -> dict[str, int]:
    """The most tokens whose logits, or anything else as wide as the vocabulary, are there in one array at a time:
    with all of them at once, and in parts of 3; forward and backward."""
    from sdpo_plugin.host.forward import head
    from sdpo_plugin.host.forward.attention import packed_attention
    from sdpo_plugin.host.forward.packing import PackingCollator

    model, found = build(kind, "sdpa"), {}
    head.LOGITS_AT_ONCE = THREE_TOKENS
    batch = PackingCollator(MAX_LENGTH)(rows())
    for how in ("whole", "parts"):
        assert how == "whole" or head.read_in_parts(model)
        with packed_attention(model), Widest(64) as seen:
            gradients(model, log_probs(model, batch))
        found[how] = max(seen.tokens)
    return found | {"tokens": len(batch["packed_places"])}


class Widest(TorchDispatchMode):
    """Notes how many tokens have a number for each of V words in an array; weights have 32 rows of them, or columns."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self._vocabulary = vocabulary
        self.tokens: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **kwargs or {})
        for one in found if isinstance(found, tuple | list) else (found,):
            if isinstance(one, torch.Tensor) and one.shape[-1:] == (self._vocabulary,) and one.numel() != 32 * 64:
                self.tokens.add(one.numel() // self._vocabulary)
        return found


def with_another(kind: str, fields: dict[str, Any]) -> dict[str, float]:
    """How far log-probs move, of padded rows, when a model's config has another value in one of these fields."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    batch, moved = DataCollatorForPreference(0, MAX_LENGTH)(rows()), {}
    for field, value in fields.items():
        found = [log_probs(build(kind, "eager", **more), batch) for more in ({}, {field: value})]
        moved[field] = float((found[0] - found[1]).detach().abs().max())
    return moved


def build(kind: str, attention: str, **fields: Any) -> Any:
    """A model, as it trains, without dropout."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    architecture, _, positions = kind.partition(" ")
    config, is_flash = AutoConfig.for_model(architecture, **MODELS[architecture] | fields), "flash" in attention
    if positions:
        config.rope_parameters = {"rope_type": positions, **POSITIONS[positions]}
        config.max_position_embeddings = 16
    loaded = "eager" if is_flash else attention
    model = AutoModelForCausalLM.from_config(config, attn_implementation=loaded, dtype=torch.float32)
    if is_flash:
        stand_in(attention)
        model.config._attn_implementation_internal = attention
    model.train()
    for module in model.modules():
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def stand_in(name: str) -> None:
    """Takes the place of a flash attention, which caps scores as the model's own function does, and looks itself up by
    the name in the model's config."""
    import sys

    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    def attention(module: Any, *states: Any, **kwargs: Any) -> Any:
        assert module.config._attn_implementation == name
        return sys.modules[type(module).__module__].eager_attention_forward(module, *states, **kwargs)

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def half_precision(kind: str) -> dict[str, list[float]]:
    """How far log-probs, and gradients, under bfloat16 autocast are from those in float32, on average, by both forward
    passes."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    from sdpo_plugin.host.forward.attention import packed_attention
    from sdpo_plugin.host.forward.packing import PackingCollator

    model = build(kind, "sdpa")
    inputs = {"padded": DataCollatorForPreference(0, MAX_LENGTH)(rows()), "packed": PackingCollator(MAX_LENGTH)(rows())}
    off = {}
    with packed_attention(model):
        exact = log_probs(model, inputs["padded"])
        of_exact = torch.cat([gradient.flatten() for gradient in gradients(model, exact)])
        for how, batch in inputs.items():
            with torch.autocast("cpu", torch.bfloat16):
                found = log_probs(model, batch)
            of_found = torch.cat([gradient.flatten() for gradient in gradients(model, found)])
            off[how] = [float((found - exact).abs().mean()), float((of_found - of_exact).abs().mean())]
    return off


def states_under_autocast(kind: str) -> list[str]:
    """The dtypes of the states that an attention asks a kernel for, under bfloat16 autocast."""
    from sdpo_plugin.host.forward import varlen
    from sdpo_plugin.host.forward.attention import packed_attention
    from sdpo_plugin.host.forward.packing import PackingCollator

    seen: list[str] = []
    varlen.kernel_for = lambda *states: seen.extend(str(each.dtype) for each in states[:3])
    model = build(kind, "sdpa")
    with torch.no_grad(), packed_attention(model), torch.autocast("cpu", torch.bfloat16):
        log_probs(model, PackingCollator(MAX_LENGTH)(rows()))
    return seen


def takes_kernel(cases: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Whether a GPU's kernel is taken, by what differs from states that it takes; the GPU is a stand-in."""
    from types import SimpleNamespace

    from sdpo_plugin.host.forward import varlen

    found = {}
    for name, case in cases.items():
        torch.version.cuda = "12.8"
        torch.backends.cuda.is_flash_attention_available = lambda: True
        torch.cuda.get_device_capability = lambda device, case=case: tuple(case.get("capability", (8, 0)))
        varlen._kernel = lambda: print
        dtypes = [getattr(torch, name) for name in case.get("dtypes", ["bfloat16"] * 3)]
        sizes = case.get("sizes", [64] * 3)
        states = [
            SimpleNamespace(is_cuda=case.get("is_cuda", True), dtype=dtype, shape=(1, 4, 9, size), device="cuda")
            for dtype, size in zip(dtypes, sizes, strict=True)
        ]
        found[name] = varlen.kernel_for(*states, case.get("arguments", {})) is not None
    return found


def tiles() -> dict[str, float]:
    """How far the gradients of the host's MLP in tiles are from those of an MLP, by the rows of its batch."""
    from axolotl.monkeypatch.tiled_mlp.base import TiledMLP

    off = {}
    for name, num_rows in (("one row", 1), ("two rows", 2)):
        generator = torch.Generator().manual_seed(0)
        mlp = torch.nn.Linear(8, 8)
        states = torch.randn(num_rows, 6, 8, generator=generator, requires_grad=True)
        weights = torch.randn(num_rows, 6, 8, generator=generator)
        found = []
        for made in (mlp(states), TiledMLP.apply(lambda own, part: own(part), mlp, states, 3, list(mlp.parameters()))):
            mlp.zero_grad(set_to_none=True)
            (made * weights).sum().backward()
            found.append(mlp.weight.grad.clone())
        off[name] = float((found[0] - found[1]).abs().max())
    return off


def balance(kind: str) -> dict[str, Any]:
    """How far the auxiliary loss of the experts, and its gradients, are from those of padded rows; and how far the loss
    would be, were prompts counted once."""
    import sys

    from trl.trainer.dpo_trainer import DataCollatorForPreference

    from sdpo_plugin.host.forward.attention import packed_attention
    from sdpo_plugin.host.forward.experts import BALANCE, balancing_packed_rows
    from sdpo_plugin.host.forward.log_probs import taking
    from sdpo_plugin.host.forward.packing import PackingCollator

    model = build(kind, "eager")
    module: Any = sys.modules[type(model).__module__]
    before = vars(module)[BALANCE]

    def loss(collator: Any) -> torch.Tensor:
        batch = collator(rows())
        given = {key: value for key, value in batch.items() if key != "completion_mask"}
        found: torch.Tensor = taking(model, batch)(**given, use_cache=False, output_router_logits=True).aux_loss
        return found

    packing = PackingCollator(MAX_LENGTH)
    with packed_attention(model):
        once = loss(packing)
        with balancing_packed_rows(model):
            found = [loss(collator) for collator in (DataCollatorForPreference(0, MAX_LENGTH), packing)]
            padded, packed = (gradients(model, one[None]) for one in found)
    return {
        "loss": float((found[0] - found[1]).detach().abs()),
        "gradients": max(float((one - other).abs().max()) for one, other in zip(padded, packed, strict=True)),
        "were prompts counted once": float((found[0] - once).detach().abs()),
        "restored": vars(module)[BALANCE] is before,
    }


def in_half_precision(kind: str) -> dict[str, float]:
    """How far log-probs of a model that gives its logits in bfloat16, as under DeepSpeed, are from the exact sums over
    these logits, by both forward passes; 0.1 to 0.4 nats were they summed in bfloat16."""
    from trl.trainer import dpo_trainer

    from sdpo_plugin.host.forward.attention import packed_attention
    from sdpo_plugin.host.forward.log_probs import taking
    from sdpo_plugin.host.forward.packing import PackingCollator
    from sdpo_plugin.host.patches import reading_answer_logits

    model, off = build(kind, "sdpa").to(torch.bfloat16), {}
    batches = {"padded": dpo_trainer.DataCollatorForPreference(0, MAX_LENGTH)(rows()), "packed": None}
    batches["packed"] = PackingCollator(MAX_LENGTH)(rows())
    with torch.no_grad(), packed_attention(model), reading_answer_logits():
        for how, batch in batches.items():
            labels, mask = batch["input_ids"][:, 1:], batch["completion_mask"][:, 1:]
            given = {key: value for key, value in batch.items() if key != "completion_mask"}
            given_by_head: list[torch.Tensor] = []
            hook = model.lm_head.register_forward_hook(lambda *args, seen=given_by_head: seen.append(args[-1]))
            logits = taking(model, batch)(**given, use_cache=False).logits[..., :-1, :]
            hook.remove()
            found = (dpo_trainer.selective_log_softmax(logits, labels) * mask).sum(1)
            (own,) = given_by_head
            assert own.dtype == torch.bfloat16
            if how == "padded":
                exact = torch.gather(own[:, :-1].double().log_softmax(-1), -1, labels.unsqueeze(-1)).squeeze(-1)
            else:
                of_labels = own[0].double().log_softmax(-1).gather(-1, batch["packed_labels"].unsqueeze(-1))
                exact = torch.zeros(mask.numel(), dtype=torch.float64)
                exact = exact.index_put((batch["packed_cells"],), of_labels.squeeze(-1)).view(mask.shape)
            off[how] = float((found - (exact * mask).sum(1)).abs().max())
    return off


def on_gpu(kind: str) -> dict[str, float]:
    """Log-probs in bfloat16 on a GPU, where the kernel takes all pairs at once, beside those in float32."""
    from sdpo_plugin.host.forward import varlen
    from sdpo_plugin.host.forward.attention import packed_attention
    from sdpo_plugin.host.forward.packing import PACKED, PackingCollator

    batch = PackingCollator(MAX_LENGTH)(rows())
    batch = {key: value if key == PACKED else value.cuda() for key, value in batch.items()}
    model = build(kind, "sdpa").cuda()
    with torch.no_grad(), packed_attention(model):
        exact = log_probs(model, batch)
        model.to(torch.bfloat16)
        fast = log_probs(model, batch)
        assert varlen._texts.cache_info().currsize, "the kernel has computed it"
        varlen.kernel_for = lambda *states: None
        slow = log_probs(model, batch)
    return {how: float((found - exact).abs().mean()) for how, found in (("kernel", fast), ("pairs", slow))}


def kernel_on_gpu(window: int | None, size: int) -> dict[str, float]:
    """How far the kernel's output and gradients in bfloat16 are from those of plain PyTorch in float32, as shares of
    the largest; rows of several of its blocks, and of one token."""
    from sdpo_plugin.host.forward import varlen
    from sdpo_plugin.host.forward.packing import PackedLayout

    torch.manual_seed(0)
    layout = PackedLayout.of([(150, 200, 130), (1, 1, 1), (40, 7, 300)])
    tokens = sum(map(len, layout.pairs))
    states = [torch.randn(1, heads, tokens, size, device="cuda") for heads in (4, 2, 2)]
    weights = torch.randn(1, tokens, 4, size, device="cuda")
    real, found = varlen._kernel(), []
    assert real is not None
    for attend, dtype in ((real, torch.bfloat16), (partial(kernel, []), torch.float32)):
        given = [each.bfloat16().to(dtype).requires_grad_() for each in states]
        output = varlen.attend(attend, *given, layout, size**-0.5, window)
        output.backward(weights.to(dtype))
        found.append([output.detach().float(), *(each.grad.float() for each in given)])
    names = ("output", "query", "key", "value")
    return {
        name: float((one - other).abs().max() / other.abs().max())
        for name, one, other in zip(names, *found, strict=True)
    }


def log_probs(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Summed log-probs of a batch, shape (2, B), as TRL computes them."""
    from trl.trainer import dpo_trainer

    from sdpo_plugin.host.forward.log_probs import taking
    from sdpo_plugin.host.patches import reading_answer_logits

    labels, mask = inputs["input_ids"][:, 1:], inputs["completion_mask"][:, 1:]
    given = {key: value for key, value in inputs.items() if key != "completion_mask"}
    logits = taking(model, inputs)(**given, use_cache=False).logits[..., :-1, :]
    with reading_answer_logits():
        found = dpo_trainer.selective_log_softmax(logits, labels)
    return (found * mask).sum(1).reshape(2, -1)


def gradients(model: Any, found: torch.Tensor) -> list[torch.Tensor]:
    """Of a loss that weighs every log-prob differently."""
    model.zero_grad()
    weights = torch.linspace(-1.0, 1.0, found.numel()).reshape(found.shape)
    (found * weights).sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def trained(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """All weights after three updates of DPO (β 1, SGD) on one batch; the reference is the model as it stands."""
    policy = copy.deepcopy(model)
    with torch.no_grad():
        reference = log_probs(policy, batch)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    for _ in range(3):
        chosen, rejected = log_probs(policy, batch) - reference
        optimizer.zero_grad()
        (-torch.nn.functional.logsigmoid(chosen - rejected)).mean().backward()
        optimizer.step()
    return flat(policy)


def flat(model: Any) -> torch.Tensor:
    """All weights, one after the other."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def kernel(
    called: list[int],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_ends: torch.Tensor,
    key_ends: torch.Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` documents, in plain PyTorch: states of shape (T, heads, size)."""
    called.append(len(query))
    (before, after), bounds = window_size, [list(pairwise(ends.tolist())) for ends in (query_ends, key_ends)]
    assert (longest_query, longest_key) == tuple(max(end - start for start, end in texts) for texts in bounds)
    assert after == 0
    assert enable_gqa == (query.shape[1] != key.shape[1])
    parts = []
    for (q0, q1), (k0, k1) in zip(*bounds, strict=True):
        keys = torch.arange(k1 - k0, device=query.device)
        at = keys[k1 - k0 - (q1 - q0) :, None]  # the last query stands where the last key does
        seen = keys <= at
        if before >= 0:
            seen &= keys >= at - before
        groups = query.shape[1] // key.shape[1]
        scores = torch.einsum("qhd,khd->hqk", query[q0:q1], key[k0:k1].repeat_interleave(groups, 1)) * scale
        shares = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        parts.append(torch.einsum("hqk,khd->qhd", shares, value[k0:k1].repeat_interleave(groups, 1)))
    return torch.cat(parts)


def leaks(model: Any, packing: Any) -> float:
    """How far log-probs move where only a text that they must not see has changed: exactly 0."""
    with torch.no_grad():
        before = log_probs(model, packing(rows()))
        worst = 0.0
        for number in range(len(LENGTHS)):
            for side, own in (("prompt_ids", [0, 1]), ("chosen_ids", [0]), ("rejected_ids", [1])):
                changed = rows()
                changed[number][side] = [3 + (token - 2) % 61 for token in changed[number][side]]
                moved = (log_probs(model, packing(changed)) - before).abs()
                assert float(moved[own, number].min()) > 0.0, "the change is seen by its own text"
                moved[own, number] = 0.0
                worst = max(worst, float(moved.max()))
    return worst


def collate(pairs: list[dict[str, Any]], max_length: int | None) -> dict[str, Any]:
    """A packed batch as lists."""
    from sdpo_plugin.host.forward.packing import PACKED, PackingCollator, longest_row

    batch = PackingCollator(max_length)(pairs)
    layout = batch.pop(PACKED)
    lists = {key: value.tolist() for key, value in batch.items()}
    return lists | {"longest": longest_row({PACKED: layout}), "starts": [pair.start for pair in layout.pairs]}
