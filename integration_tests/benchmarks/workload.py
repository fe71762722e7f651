"""What the benchmarks train: a Llama of a chosen size, and pairs whose lengths are those of real preference data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Prompt, chosen and rejected tokens of 400 pairs each: Anthropic's HH-RLHF (harmless, test) and PandaLM's test set,
# counted with a byte-level BPE of 27,000 tokens trained on these texts; the order is shuffled.
LENGTHS = Path(__file__).parent / "lengths.json"
FILE = "SDPO_BENCHMARK_MARKS"  # where marks.py writes
WORDS = ("system", "user", "assistant")
SPECIAL = ("<unk>", "<s>", "<|im_end|>", "<pad>", "<|im_start|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# hidden size, layers, heads, intermediate size
SHAPES = {"260K": (64, 5, 8, 172), "10M": (320, 6, 5, 864), "25M": (512, 7, 8, 1376), "1B": (2048, 16, 32, 8192)}


@dataclass(frozen=True)
class Workload:
    """One run of T steps, as `rl: sdpo` and as a chain of `rl: dpo` runs."""

    model: str
    vocabulary: int
    sets: tuple[str, ...]
    rows: int
    micro_batch: int
    epochs: int
    adapter: str | None
    optimizer: str
    bf16: bool = False


def make_model(path: Path, work: Workload) -> int:
    """Save a random Llama and a tokenizer with a token a word; return its number of parameters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    words = [*SPECIAL, *WORDS, *(f"w{number}" for number in range(work.vocabulary - len(SPECIAL) - len(WORDS)))]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), SPECIAL, strict=False))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, **names, additional_special_tokens=[SPECIAL[4]], chat_template=TEMPLATE
    )
    hidden, layers, heads, intermediate = SHAPES[work.model]
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config = LlamaConfig(
        vocab_size=work.vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=2048,
        **ids,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return int(model.num_parameters())


def write_set(path: Path, name: str, work: Workload, seed: int) -> dict[str, Any]:
    """Write pairs of random words with the lengths of a real set; return their entry of `datasets:`."""
    import random

    draw = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(f"w{draw.randrange(work.vocabulary - 8)}" for _ in range(count))

    lengths = json.loads(LENGTHS.read_text(encoding="utf-8"))[name]
    rows = []
    for number in range(work.rows):
        prompt, chosen, rejected = map(words, lengths[number % len(lengths)])
        answers = {"chosen": chosen, "rejected": rejected}
        rows.append(
            {"messages": [{"role": "user", "content": prompt}]}
            | {side: {"role": "assistant", "content": text} for side, text in answers.items()}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    fields = {"field_messages": "messages", "field_chosen": "chosen", "field_rejected": "rejected"}
    return {"path": str(path), "ds_type": "json", "split": "train", "type": "chat_template.default", **fields}


def dpo_config(work: Workload, model: Path, entries: list[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """An ordinary `rl: dpo` config; what it does not say is the host's default."""
    config: dict[str, Any] = {
        "base_model": str(model),
        "plugins": ["integration_tests.benchmarks.marks.Marks"],
        "rl": "dpo",
        "rl_beta": 0.1,
        "chat_template": "tokenizer_default",
        "datasets": [dict(entry) for entry in entries],
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / "out"),
        "sequence_len": 1024,
        "micro_batch_size": work.micro_batch,
        "gradient_accumulation_steps": 1,
        "num_epochs": work.epochs,
        "learning_rate": 1e-3 if work.optimizer == "sgd" else 1e-5,
        "optimizer": work.optimizer,
        "lr_scheduler": "linear",
        "logging_steps": 1,
        "bf16": work.bf16,
        "fp16": False,
        "tf32": False,
        "seed": 42,
    }
    if work.adapter is not None:
        config |= {"adapter": work.adapter, "lora_r": 16, "lora_alpha": 32, "lora_target_linear": True}
    return config


def sdpo_config(config: Mapping[str, Any], *, packed: bool | str, matrix: bool = False) -> dict[str, Any]:
    """The same config as `rl: sdpo`.

    Args:
        config: as `rl: dpo`.
        packed: `sdpo.packed`.
        matrix: whether every model is looked at on every step's rows for the report, as by default; nobody does that
            for a chain of separate runs.
    """
    plugins = ["sdpo_plugin.SDPOPlugin", *config["plugins"]]
    block: dict[str, Any] = {"packed": packed, "diagnostics": {"matrix": matrix}}
    made = {**config, "rl": "sdpo", "plugins": plugins, "sdpo": block}
    if len(config["datasets"]) == 1:  # one step is meant
        block["steps"] = [{"datasets": made.pop("datasets")}]
    return made
