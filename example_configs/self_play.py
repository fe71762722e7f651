"""The hooks of self-play.yaml: the rejected answers of steps 2 and 3 are the model's own (SPIN, arXiv 2401.01335).

Stepwise DPO calls `make_pairs` before a step, when M_{t-1} has been written. It loads that model, lets it answer the
prompts of a preference set, and pairs each answer with the set's chosen one, which stays the better one until the model
answers like it. What is heavy is imported where it is needed: the module is imported when the config is read.
"""

import json

import sdpo_plugin

SOURCE, SPLIT = "allenai/ultrafeedback_binarized_cleaned", "train_prefs"
PROMPTS = 8000  # drawn anew for each step
BATCH = 16  # prompts that are answered at once
MAX_NEW_TOKENS = 512


def make_pairs(context: sdpo_plugin.StepContext) -> None:
    """Write pairs in the form of `chat_template.argilla_chat` for a step that waits for them."""
    if context.data_path is None:  # this step has rows of its own
        return
    from datasets import load_dataset

    rows = load_dataset(SOURCE, split=SPLIT).shuffle(seed=context.seed + context.step.index)
    rows = rows.select(range(min(PROMPTS, len(rows))))
    prompts = [row["chosen"][:-1] for row in rows]
    answers = answer(context.model_dir, prompts, seed=context.seed + context.step.index)
    with context.data_path.open("w", encoding="utf-8") as file:
        for row, prompt, text in zip(rows, prompts, answers, strict=True):
            if text.strip() and text.strip() != row["chosen"][-1]["content"]:  # else there is nothing to prefer
                own = {"role": "assistant", "content": text.strip()}
                file.write(json.dumps({"chosen": row["chosen"], "rejected": [*prompt, own]}) + "\n")


def tell(context: sdpo_plugin.StepContext) -> None:
    """Print where the step began and ended."""
    rows, record = context.step.num_rows, context.record
    print(f"M_{context.step.index}: {rows:,} rows, loss {record.first_loss:.4f} to {record.final_loss:.4f}")


def answer(model_dir: str, prompts: list[list[dict[str, str]]], seed: int) -> list[str]:
    """One sampled answer to each conversation, by a whole model or by an adapter with the base model that it names."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype).to(device).eval()
    set_seed(seed)
    answers = []
    for first in range(0, len(prompts), BATCH):
        texts = [
            tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            for prompt in prompts[first : first + BATCH]
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(device)
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=True, temperature=1.0)
        answers += tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers
