"""Plain PyTorch in place of the host: DPO whose reference is a frozen copy of the policy, renewed now and then.

Written from the definitions (arXiv 2305.18290, Eq. 7; arXiv 2404.09656, hard update): rows go through the model one by
one, and nothing of the plugin or TRL is called.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BETA, CLIP = 0.1, 1.0


def train(
    model: str,
    prepared: str,
    rows: int,
    out: str,
    *,
    epochs: int,
    batch: int,
    lr: float,
    adam_epsilon: float,
    every: int = 0,
    kl_above: float = 0.0,
    reference: str = "",
) -> list[list[float]]:
    """Train on the set of `rows` rows that the host has prepared, in the host's order, and save the weights.

    Args:
        model: M_{t-1}.
        prepared: the host's prepared sets.
        rows: of D_t.
        out: where the weights go.
        epochs, batch, lr, adam_epsilon: as the config has them; `batch` is of one update.
        every: updates from one renewal to the next; 0: none.
        kl_above: renews above this distance; 0: never.
        reference: another model than M_{t-1} as the reference until the first renewal.

    Returns:
        [update, distance, first loss after it] of each renewal.
    """
    import torch

    from integration_tests.harness.expected_log_probs import prepared_texts
    from integration_tests.harness.probes import load

    policy, tokenizer = load(model)
    frozen = copy.deepcopy(policy) if not reference else load(reference)[0]
    pairs = [encoded(tokenizer, row) for row in prepared_texts(prepared, rows)]
    per_epoch = -(-rows // batch)
    adam = torch.optim.AdamW(policy.parameters(), lr=lr, eps=adam_epsilon, weight_decay=0.0)
    seen: list[float] = []
    renewals: list[list[float]] = []
    for update in range(epochs * per_epoch):
        epoch, number = divmod(update, per_epoch)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(42 + epoch)).tolist()
        adam.param_groups[0]["lr"] = lr * (1 - update / (epochs * per_epoch))
        chosen = order[number * batch : (number + 1) * batch]
        ratios = torch.stack([torch.stack(log_ratios(policy, frozen, pairs[row])) for row in chosen])
        loss = -torch.nn.functional.logsigmoid(BETA * (ratios[:, 0] - ratios[:, 1])).mean()
        if renewals and len(renewals[-1]) == 2:
            renewals[-1].append(float(loss.detach()))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP)
        adam.step()
        seen.append(float((ratios.detach().double() ** 2).mean() / 2))
        kl = sum(seen[-10:]) / len(seen[-10:])
        due = len(seen) == every or (kl_above and kl > kl_above)
        if due and update + 1 < epochs * per_epoch:
            frozen = copy.deepcopy(policy)
            renewals.append([update + 1, kl])
            seen = []
    policy.save_pretrained(out)
    return renewals


def encoded(tokenizer: Any, row: Mapping[str, str]) -> list[tuple[list[int], int]]:
    """[chosen, rejected]: all token ids, and how many of them are the prompt's."""
    start = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
    ends = [tokenizer(row[side], add_special_tokens=False)["input_ids"] for side in ("chosen", "rejected")]
    return [(start + end, len(start)) for end in ends]


def log_ratios(policy: Any, frozen: Any, pair: list[tuple[list[int], int]]) -> list[Any]:
    """log π − log π_ref of both answers."""
    import torch

    def log_prob(model: Any, ids: list[int], prompt: int) -> Any:
        tokens = torch.tensor([ids])
        picked = model(tokens).logits[0, :-1].float().log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
        return picked[prompt - 1 :].sum()

    found = []
    for ids, prompt in pair:
        with torch.no_grad():
            reference = log_prob(frozen, ids, prompt)
        found.append(log_prob(policy, ids, prompt) - reference)
    return found


def tables_in(checkpoint: Path) -> list[str]:
    """The reference tables that a checkpoint holds, by name."""
    return sorted(path.name for path in (checkpoint / "sdpo").glob("reference-*.safetensors"))
