"""The precision that log-probs are computed in."""

import torch
from transformers import Trainer

HALF = {torch.bfloat16, torch.float16}


def is_half_precision(trainer: Trainer) -> bool:
    """Whether weights or autocast are bfloat16 or float16, or matrix products TF32."""
    dtypes = {parameter.dtype for parameter in trainer.model.parameters()}
    return bool(trainer.args.bf16 or trainer.args.fp16 or trainer.args.tf32 or dtypes & HALF)
