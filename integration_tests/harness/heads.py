"""Heads of models, as they are found, read in parts and left; runs in a fork."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch

from integration_tests.harness.packed import MAX_LENGTH, THREE_TOKENS, build, gradients, log_probs, rows


def found_to_be_last() -> dict[str, bool | None]:
    """Whether nothing comes after the head of a model, as a watched forward pass finds."""
    from sdpo_plugin.host.forward.attention import packed_attention
    from sdpo_plugin.host.forward.head import read_in_parts, watching
    from sdpo_plugin.host.forward.packing import PackingCollator

    batch, found = PackingCollator(MAX_LENGTH)(rows()), {}
    changes: dict[str, Any] = {
        "nothing": lambda module, states, logits: None,
        "a scale": lambda module, states, logits: 2.0 * logits,
        "a scale in place": lambda module, states, logits: logits.mul_(2.0),
    }
    for what, change in changes.items():
        model = build("llama", "sdpa")
        assert read_in_parts(model)
        model.lm_head.register_forward_hook(change)
        with packed_attention(model), watching() as watch, torch.no_grad():
            log_probs(model, batch)
        found[what] = watch.is_last
    return found


def rounded_outputs() -> dict[str, float]:
    """Log-probs and gradients, in parts, of a model whose outputs FSDP2 would round to bfloat16, beside those of one
    whose outputs nobody touches: the largest differences."""
    from sdpo_plugin.host.forward import head
    from sdpo_plugin.host.forward.attention import packed_attention
    from sdpo_plugin.host.forward.packing import PackingCollator

    def rounded(module: Any, given: Any, outputs: Any) -> None:
        outputs.logits = outputs.logits.bfloat16()

    head.LOGITS_AT_ONCE = THREE_TOKENS
    batch, sides = PackingCollator(MAX_LENGTH)(rows()), []
    for rounds in (False, True):
        model = build("llama", "sdpa")
        assert head.read_in_parts(model)
        if rounds:
            model.register_forward_hook(rounded)
        with packed_attention(model):
            found = log_probs(model, batch)
            sides.append((found.detach(), gradients(model, found)))
    (first, by_first), (second, by_second) = sides
    return {
        "log-probs": float((first - second).abs().max()),
        "gradients": max(float((one - other).abs().max()) for one, other in zip(by_first, by_second, strict=True)),
        "largest gradient": max(float(one.abs().max()) for one in by_first),
    }


def left_as_it_was() -> dict[str, bool]:
    """What is left of a head when it is undone: of ours nothing, of another's its own; and a cap is the model's again,
    also where its forward pass has failed."""
    from sdpo_plugin.host.forward.head import CAP, read_at_once, read_in_parts, reading

    plain, other, capped = build("llama", "sdpa"), build("llama", "sdpa"), build("gemma2", "sdpa")
    before = dict(vars(plain.lm_head))
    assert read_in_parts(plain)
    read_at_once(plain)
    own = MethodType(type(other.lm_head).forward, other.lm_head)
    other.lm_head.forward = own
    took = read_in_parts(other)
    read_at_once(other)
    cap = getattr(capped.config, CAP)
    assert read_in_parts(capped)
    try:
        with reading(torch.zeros(2, dtype=torch.long)):
            capped.lm_head(torch.zeros(1, 2, 32))
            within = getattr(capped.config, CAP)
            capped.lm_head(torch.zeros(1, 2, 31))
    except RuntimeError:
        pass
    return {
        "plain": vars(plain.lm_head) == before,
        "other": not took and vars(other.lm_head)["forward"] == own,
        "cap": within is None and getattr(capped.config, CAP) == cap > 0,
    }
