"""The auxiliary loss that balances the experts of a model (arXiv 2101.03961, equations 4 to 6), of packed rows."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from transformers import PreTrainedModel

from sdpo_plugin.host.forward.attention import class_of, row_under_way

# transformers', once for each architecture, with its parameters; the first one holds a tensor of shape (tokens,
# experts) for each layer.
BALANCE = "load_balancing_loss_func"
PARAMETERS = ["gate_logits", "num_experts", "top_k", "attention_mask"]


def balances_packed_rows(model: PreTrainedModel) -> bool:
    """Whether the auxiliary loss of ``model`` is transformers' own."""
    found = _names_of(model).get(BALANCE)
    return found is not None and list(inspect.signature(found).parameters) == PARAMETERS


@contextmanager
def balancing_packed_rows(model: PreTrainedModel) -> Iterator[None]:
    """Within this context the loss counts the tokens of a packed row as often as padded rows have them: those of a
    prompt once for each answer. Nothing is changed where the loss is another one."""
    if not balances_packed_rows(model):
        yield
        return
    names = _names_of(model)
    of_all = names[BALANCE]

    @wraps(of_all)
    def balance(router_logits: Any, *args: Any, **kwargs: Any) -> Any:
        layout = row_under_way()
        if layout is not None and isinstance(router_logits, tuple):
            texts = layout.texts().to(router_logits[0].device)
            router_logits = tuple(logits[texts] for logits in router_logits)
        return of_all(router_logits, *args, **kwargs)

    names[BALANCE] = balance
    try:
        yield
    finally:
        names[BALANCE] = of_all


def _names_of(model: PreTrainedModel) -> dict[str, Any]:
    """Where the forward pass looks up a name: the module of the architecture, or that of a kernel in its place."""
    forward: Any = inspect.unwrap(class_of(model).forward)
    names: dict[str, Any] = forward.__globals__
    return names
