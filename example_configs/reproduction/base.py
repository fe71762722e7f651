"""The base model S of the reproduction: a word tokenizer and a Llama of 85,000 parameters after a short SFT."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from example_configs.reproduction.ranking import LIST_LENGTH, NUM_WORDS, Numbers, World

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
UPDATES, BATCH, LEARNING_RATE, WARMUP = 800, 128, 3e-3, 80


def words(lists: Numbers) -> list[str]:
    """Lists of word numbers as texts."""
    return [" ".join(f"w{word}" for word in one) for one in lists.tolist()]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word and its own chat template."""
    vocab = {token: number for number, token in enumerate([*SPECIAL, *(f"w{word}" for word in range(NUM_WORDS))])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        model_max_length=32,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=32,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def sft_batch(world: World, tokenizer: PreTrainedTokenizerFast, size: int) -> dict[str, Any]:
    """One batch as the chat template writes it; the loss is on the answers only."""
    prompts, answers = (torch.from_numpy(lists) + len(SPECIAL) for lists in world.writer_answers(size))
    bos, user, assistant, eos = (
        torch.full((len(prompts), 1), tokenizer.convert_tokens_to_ids(token))
        for token in ("<s>", "<|user|>", "<|assistant|>", "</s>")
    )
    ids = torch.cat([bos, user, prompts, assistant, answers, eos], dim=1)
    labels = ids.clone()
    labels[:, : LIST_LENGTH + 3] = -100
    return {"input_ids": ids, "labels": labels}


def train_base(world: World, tokenizer: PreTrainedTokenizerFast, seed: int) -> tuple[LlamaForCausalLM, float]:
    """A fresh model trained on the writer's answers, and its last loss."""
    torch.manual_seed(seed)
    model = build_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, (UPDATES - step) / (UPDATES - WARMUP))
    )
    for _ in range(UPDATES):
        loss = model(**sft_batch(world, tokenizer, BATCH)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model.eval(), float(loss.item())
