"""The next action of a run that nothing but its ledger is known of."""

from dataclasses import dataclass
from typing import Literal

from sdpo_plugin.plan import M_0, model_name
from sdpo_plugin.run_dir.ledger import Ledger


@dataclass(frozen=True)
class Action:
    """The first action of the loop over the steps, and the model that it needs.

    Attributes:
        kind: prepare: compute what is computed before step 1. reference: the reference table of D_t, and what tells
            of M_{t-1}. train: train step t and export M_t. finish: the held-out log-probs of M_T. save: let
            the host write the final model.
        step: t, or 0 where it is about no step.
        model: the model that has to be in memory, "M_0" … "M_T".
    """

    kind: Literal["prepare", "reference", "train", "finish", "save", "nothing"]
    step: int
    model: str


def next_action(ledger: Ledger) -> Action:
    """The first action of ``runner.run_steps`` that the ledger does not say is done. A pure function.

    A step that is trained but not exported exists nowhere but in its last checkpoint, and is trained from there.
    """
    if not ledger.prepared:
        return Action("prepare", 0, M_0)
    for step, record in ledger.steps:
        if record.state == "planned":
            return Action("reference", step.index, model_name(step.index - 1))
        if record.state != "exported":
            return Action("train", step.index, step.policy_init)
    if not ledger.finished:
        return Action("finish", 0, ledger.last_model)
    return Action("nothing" if ledger.saved else "save", 0, ledger.last_model)
