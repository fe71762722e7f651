"""The demo's base model S: a word tokenizer and a small Llama after a short SFT."""

import time
from dataclasses import dataclass

import torch
from task import SLIP_RATE, WORDS, TaskGenerator
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
IGNORED = -100  # the label of a token that takes no part in the loss


@dataclass(frozen=True)
class SFTSettings:
    """How the base model is trained."""

    seed: int = 7
    steps: int = 600
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup_steps: int = 60


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a word and its own chat template."""
    tokens = [*SPECIAL, "sort", ":", *SLIP_RATE, *WORDS]
    vocab = {token: number for number, token in enumerate(tokens)}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained Llama of about one million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def sft_batch(generator: TaskGenerator, tokenizer: PreTrainedTokenizerFast, size: int) -> dict[str, torch.Tensor]:
    """Return one batch, padded on the right, with the loss on the answers only."""
    ids, labels = [], []
    for _ in range(size):
        question, answer = generator.sft_sample()
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            tokenize=False,
        )
        prompt_ids = tokenizer(prompt)["input_ids"]
        answer_ids = tokenizer(answer + tokenizer.eos_token)["input_ids"]
        ids.append(prompt_ids + answer_ids)
        labels.append([IGNORED] * len(prompt_ids) + answer_ids)
    width = max(map(len, ids))
    pad = tokenizer.pad_token_id
    return {
        "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
        "labels": torch.tensor([row + [IGNORED] * (width - len(row)) for row in labels]),
    }


def train_base(generator: TaskGenerator, tokenizer: PreTrainedTokenizerFast, settings: SFTSettings) -> LlamaForCausalLM:
    """Train a fresh model on the sloppy sorter's answers and return it."""
    torch.manual_seed(settings.seed)
    model = build_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)

    def rate(step: int) -> float:
        """Warm up, then decay linearly to zero."""
        left = (settings.steps - step) / (settings.steps - settings.warmup_steps)
        return min((step + 1) / settings.warmup_steps, left)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    started = time.perf_counter()
    for step in range(1, settings.steps + 1):
        loss = model(**sft_batch(generator, tokenizer, settings.batch_size)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == settings.steps:
            seconds = time.perf_counter() - started
            print(f"SFT step {step}/{settings.steps}: loss {loss.item():.3f}, {seconds:.0f} s")
    return model.eval()
