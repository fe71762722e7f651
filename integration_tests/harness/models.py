"""Tiny random models of the architectures users train, each with a tokenizer made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from integration_tests.harness.data import WORDS

if TYPE_CHECKING:
    from integration_tests.harness.launch import Host

HIDDEN, LAYERS, HEADS, POSITIONS = 32, 2, 4, 512
STD = 0.2  # wide enough that log-probs differ clearly between rows
BOS, EOS, PAD = "<s>", "<|im_end|>", "<pad>"
# Qwen2's tokenizer class adds <|endoftext|> where it is missing. The host would then grow the embeddings, at random and
# apart for the policy and its reference, and the first loss would not be ln 2.
SPECIAL = (PAD, BOS, EOS, "<|im_start|>", "<|endoftext|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA = {
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS // 2,
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": False,
    "initializer_range": STD,
}
# Everything not named, dropout included, is the architecture's default. One that is not listed has Llama's shape.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "gpt2": {
        "n_embd": HIDDEN,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": POSITIONS,
        "initializer_range": STD,
    },
    "opt": {
        "hidden_size": HIDDEN,
        "word_embed_proj_dim": HIDDEN,
        "ffn_dim": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
        "init_std": STD,
    },
    "bloom": {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "initializer_range": STD},
    "gpt_neox": {
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
        "initializer_range": STD,
    },
}


def make_model(host: Host, path: Path, arch: str = "llama", seed: int = 0, vocab: int = 384, **config: Any) -> Path:
    """Make a model and its tokenizer in a fork of the host; `config` overrides fields of the model's config."""
    host.python("integration_tests.harness.models:build", path, arch, seed, vocab, **config)
    return path


def poison(path: str, out: str, text: str) -> int:
    """Copy a model with an embedding that is not a number for the one token of a text; return the token. Runs in a
    fork."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    (token,) = tokenizer(text, add_special_tokens=False)["input_ids"]
    model.get_input_embeddings().weight.data[token] = float("nan")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return int(token)


def write_bos(path: str, out: str) -> None:
    """Copy a model; the tokenizer adds BOS to every text, and the chat template writes it too. Runs in a fork."""
    import shutil

    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    shutil.copytree(path, out)
    tokenizer = AutoTokenizer.from_pretrained(path)
    bos = (BOS, tokenizer.bos_token_id)
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[bos])
    tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    tokenizer.save_pretrained(out)


def build_tokenizer(vocab: int) -> Any:
    """A byte-level BPE tokenizer of at most `vocab` tokens over the words of the test data."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS), "system user assistant"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=POSITIONS,
    )


def build(path: str, arch: str, seed: int, vocab: int, **config: Any) -> int:
    """Save the model and its tokenizer; return the number of parameters. Runs in the child."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = build_tokenizer(vocab)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    settings = AutoConfig.for_model(arch, **(ARCHITECTURES.get(arch, _LLAMA) | {"vocab_size": vocab} | ids | config))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return int(model.num_parameters())
