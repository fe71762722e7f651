"""The second step of a LoRA chain by hand, which the host's command line cannot do: it starts every adapter afresh."""

from __future__ import annotations


def train_from_adapter(config: str, adapter: str) -> str:
    """Train an `rl: dpo` LoRA config on from a saved adapter, with that adapter as the reference. Runs in the child.

    All is the host's own, but that its base model is wrapped with the adapter as loaded from disk. Given a model that
    has an adapter, TRL makes a frozen copy of it, named "ref", and computes the reference with that.
    """
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_preference_datasets
    from axolotl.train import setup_model_and_tokenizer
    from axolotl.utils.trainer import setup_trainer
    from peft import PeftModel

    cfg = load_cfg(config)
    data = load_preference_datasets(cfg=cfg)
    base, tokenizer, _, _ = setup_model_and_tokenizer(cfg)
    if isinstance(base, PeftModel):
        raise TypeError("the host has wrapped the base model itself: the chain by hand would train a second adapter")
    trainer = setup_trainer(
        cfg=cfg,
        train_dataset=data.train_dataset,
        eval_dataset=data.eval_dataset,
        model=PeftModel.from_pretrained(base, adapter, is_trainable=True),
        tokenizer=tokenizer,
        processor=None,
        total_num_steps=data.total_num_steps,
    )
    if "ref" not in trainer.model.peft_config:
        raise ValueError("TRL made no copy of the adapter: its reference would be the bare base model")
    trainer.train()
    trainer.save_model(cfg.output_dir)
    return str(cfg.output_dir)
