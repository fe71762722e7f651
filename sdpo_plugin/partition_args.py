"""`sdpo.partition`: how a pool of rows becomes steps (arXiv 2403.19270 v2, §3.2)."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

FRACTION_SLACK = 1e-3
"""The distance from 1 that a sum of fractions may have, so that three thirds can be written as 0.333 each."""

MAX_STEPS = 1000
"""More steps than anyone trains; a slip of the keyboard must not ask for more shares than there is memory for."""

DEFAULT_SEED = 42


class PartitionArgs(BaseModel):
    """`sdpo.partition`: how the pool of all `datasets:` entries becomes steps (arXiv 2403.19270 v2, §3.2)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    strategy: Literal["natural", "easy_to_hard", "random", "stratified"] = Field(
        description="natural: an entry is a step, in order. easy_to_hard: ordered by the base model's own log-probs. "
        "random: rows drawn whatever their source. stratified: every step holds the same share of every source."
    )
    unit: Literal["source", "row"] | None = Field(
        None,
        description="easy_to_hard only. source: entries in descending order of the base model's reference-free "
        "accuracy, one step each. row: all rows ranked by γ under the base model and cut. Default: source.",
    )
    score: Literal["log_ratio", "log_ratio_per_token"] | None = Field(
        None,
        description="easy_to_hard only. log_ratio: γ summed over tokens, in nats, as in the paper. "
        "log_ratio_per_token: each log-prob divided by its tokens first. Default: log_ratio.",
    )
    column: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="easy_to_hard only. Column of the data by whose numbers rows are ordered, or sources by their "
        "mean, instead of the base model's log-probs.",
    )
    descending: bool | None = Field(
        None, description="With column: true: high numbers are easy and come first. false: low ones. Default: true."
    )
    num_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = Field(
        None, description="Number of steps of equal size; for random, stratified and easy_to_hard by row."
    )
    fractions: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] | None = Field(
        None, description="Share of the pool of each step, instead of num_steps; they sum to 1."
    )
    pool: Literal["disjoint", "cumulative"] | None = Field(
        None,
        description="easy_to_hard by row only. disjoint: each row is in one step. cumulative: step t has all rows up "
        "to its difficulty, so those of the steps before it as well. Default: disjoint.",
    )
    drop_hardest: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="easy_to_hard by row only. Share of the pool, its hardest rows, that no step trains on."
    )
    rescore: Literal[True] | None = Field(
        None,
        description="easy_to_hard by row only. true: before each step, M_{t-1} ranks what is left of the pool again, "
        "and the step has the easiest of it. Default: the base model ranks all rows, once.",
    )
    max_rows: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Rows of the pool at most: so many are drawn, of each source its share; the rest is left out."
    )
    weights: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] | None = Field(
        None,
        description="One number per entry of datasets:, in order: the proportions in which the pool has rows of them. "
        "Default: their sizes.",
    )
    seed: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Seed of random and stratified, and of the rows that max_rows and weights draw. Default: 42."
    )

    @field_validator("rescore", mode="before")
    @classmethod
    def _off_is_unset(cls, value: object) -> object:
        return None if value is False else value

    @model_validator(mode="after")
    def _keys_fit_the_strategy(self) -> "PartitionArgs":
        orders = self.strategy == "easy_to_hard"
        draws = self.strategy in ("random", "stratified")
        by_source = orders and self.unit != "row"
        what = f"strategy: {self.strategy}" + (" by source" if by_source else "")
        owners = (
            (("unit", "score", "column"), orders, "easy_to_hard"),
            (("descending",), self.column is not None, "column"),
            (("pool", "drop_hardest", "rescore"), orders and not by_source, "easy_to_hard by row"),
            (("seed",), draws or self.leaves_rows, "random, stratified, max_rows and weights"),
        )
        for keys, belongs, owner in owners:
            for key in keys:
                if getattr(self, key) is not None and not belongs:
                    remedy = "set unit: row, or remove it" if by_source and "by row" in owner else f"remove {key}"
                    raise ValueError(f"{key}: {getattr(self, key)!r} belongs to {owner}, not to {what}; {remedy}")
        for key, value in (("column", self.column), ("pool", self.pool if self.pool == "cumulative" else None)):
            if self.rescore and value is not None:
                why = "gives the order" if key == "column" else "takes the rows of earlier steps again"
                raise ValueError(
                    f"rescore: True and {key}: {value!r} exclude each other: {key} {why}, and rescore has the model "
                    "before each step order what is left of the pool; keep one"
                )
        if self.column is not None and self.score is not None:
            raise ValueError(
                f"column: {self.column!r} and score: {self.score!r} exclude each other: the order comes from the "
                "data or from the base model; keep one"
            )
        cut = {key: getattr(self, key) for key in ("num_steps", "fractions") if getattr(self, key) is not None}
        if cut and (by_source or self.strategy == "natural"):
            key, value = next(iter(cut.items()))
            remedy = "set unit: row, or remove it" if orders else "remove it"
            raise ValueError(f"{key}: {value!r} has no use with {what}, where each source is a step; {remedy}")
        if len(cut) != 1 and (draws or (orders and not by_source)):
            both = " and ".join(f"{key}: {value!r}" for key, value in cut.items())
            seen = f"{both} are both set; keep one" if cut else "they are both missing; set one, e.g. num_steps: 2"
            raise ValueError(f"{what} needs num_steps or fractions: {seen}")
        return self

    @field_validator("fractions")
    @classmethod
    def _fractions_sum_to_one(cls, fractions: list[float] | None) -> list[float] | None:
        if fractions is not None and abs(sum(fractions) - 1) > FRACTION_SLACK:
            raise ValueError(f"{fractions} sum to {sum(fractions):.4g}, not to 1; set shares that do")
        return fractions

    @property
    def cuts_rows(self) -> bool:
        """Whether one entry of `datasets:` can become several steps."""
        return self.strategy != "natural" and (self.strategy != "easy_to_hard" or self.unit == "row")

    @property
    def leaves_rows(self) -> bool:
        """Whether some rows of the sources may be in no step because fewer are drawn."""
        return self.max_rows is not None or self.weights is not None

    @property
    def drawn_by(self) -> int:
        """The seed, or what it is where none is set."""
        return DEFAULT_SEED if self.seed is None else self.seed

    def shares(self) -> list[float]:
        """Share of the pool of each step, summing to 1 exactly enough for ``partition.step_sizes``."""
        if self.fractions is not None:
            total = sum(self.fractions)
            return [fraction / total for fraction in self.fractions]
        assert self.num_steps is not None
        return [1 / self.num_steps] * self.num_steps
