"""Settings under which packed rows cannot be exact, on a model that takes them; runs in a fork."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from accelerate.utils import DynamoBackend
from peft import PromptTuningConfig, get_peft_model
from transformers import DefaultDataCollator

from integration_tests.harness.packed import build

SETTINGS: dict[str, dict[str, Any]] = {
    "dropout": {"disable_dropout": False},
    "truncation": {"truncation_mode": "keep_end"},
    "several GPUs": {"n_gpu": 2},
}


def obstacle(what: str) -> str | None:
    """What the plugin says of a trainer with such a setting, the model's being as they should."""
    from sdpo_plugin.host.forward.attention import packed_attention
    from sdpo_plugin.host.forward.packed import _obstacle

    model = build("llama", "sdpa")
    padded = object()
    usual = {"disable_dropout": True, "truncation_mode": "keep_start", "n_gpu": 1}
    backend = DynamoBackend.EAGER if what == "compile" else DynamoBackend.NO  # as accelerate was launched, or set
    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(**usual | SETTINGS.get(what, {})),
        model=model,
        accelerator=SimpleNamespace(state=SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=backend))),
        aux_loss_enabled=what == "experts",
        compute_metrics=print if what == "metrics" else None,
        padded_collator=padded,
        data_collator=padded if what != "collator" else DefaultDataCollator(),
    )
    if what == "prompt learning":
        trainer.model = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with packed_attention(model) as takes:
        return _obstacle(trainer, model, takes)


def spread() -> str:
    """What is said of a trainer that transformers calls model parallel."""
    from sdpo_plugin.errors import ConfigError
    from sdpo_plugin.host.engines.engine import require_usable_engine

    trainer: Any = SimpleNamespace(is_model_parallel=True, model=build("llama", "sdpa"))
    try:
        require_usable_engine(trainer)
    except ConfigError as error:
        return str(error)
    return ""
