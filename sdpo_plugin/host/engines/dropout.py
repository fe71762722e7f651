"""Dropout and other noise of training that TRL does not reach."""

import torch

NOISE = ("jitter_noise", "input_jitter_noise", "moe_jitter_eps")  # of routers: Mixtral, MiniMax; PhiMoE; DBRX


def disable_other_noise(model: torch.nn.Module) -> None:
    """Finish what TRL's ``disable_dropout`` begins: it sets `nn.Dropout` modules to 0, but OPT, BLOOM, Llama's
    attention and others keep a probability as an attribute and call ``F.dropout``, and routers of experts multiply what
    they see by noise. With it on, a step would not begin at its reference."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or name == "layerdrop" or name in NOISE):
                setattr(module, name, 0.0)
