"""A DPO run whose reference is another model than its start, which the host's config cannot say."""

from __future__ import annotations


def train_held_to(config: str, reference: str) -> str:
    """Train an `rl: dpo` config from its base model, held to another. Runs in the child.

    All is the host's own, but that it loads its second model from elsewhere. TRL computes the log-probs of that before
    it trains, with `precompute_ref_log_probs: true` in the config.
    """
    import copy

    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_preference_datasets
    from axolotl.train import setup_model_and_tokenizer, setup_reference_model
    from axolotl.utils.trainer import setup_trainer

    cfg = load_cfg(config)
    data = load_preference_datasets(cfg=cfg)
    model, tokenizer, peft_config, _ = setup_model_and_tokenizer(cfg)
    other = copy.deepcopy(cfg)
    other.base_model = other.base_model_config = reference
    trainer = setup_trainer(
        cfg=cfg,
        train_dataset=data.train_dataset,
        eval_dataset=data.eval_dataset,
        model=model,
        model_ref=setup_reference_model(other, tokenizer),
        peft_config=peft_config,
        tokenizer=tokenizer,
        processor=None,
        total_num_steps=data.total_num_steps,
    )
    if not trainer.args.precompute_ref_log_probs:
        raise ValueError("set precompute_ref_log_probs: true")
    trainer.train()
    trainer.save_model(cfg.output_dir)
    return str(cfg.output_dir)
