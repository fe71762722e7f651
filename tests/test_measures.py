"""γ, its statistics and both accuracies, by hand."""

import dataclasses

import numpy as np
import pytest

from sdpo_plugin.measures import gamma, gamma_per_token, gamma_stats, implicit_reward_accuracy, reference_free_accuracy
from sdpo_plugin.tables import LogProbTable


def table(
    chosen: list[float], rejected: list[float], chosen_tokens: list[int], rejected_tokens: list[int]
) -> LogProbTable:
    return LogProbTable(
        np.array(chosen, np.float32),
        np.array(rejected, np.float32),
        np.array(chosen_tokens, np.int64),
        np.array(rejected_tokens, np.int64),
        model="M_0",
        rows_digest="d",
    )


# γ: −6 − (−4) = −2;  −9 − (−9) = 0;  −2 − (−5) = 3
# per token: −6/2 + 4/4 = −2;  −9/3 + 9/1 = 6;  −2/1 + 5/2 = 0.5
THREE = table([-6, -9, -2], [-4, -9, -5], [2, 3, 1], [4, 1, 2])


def test_gamma_is_chosen_minus_rejected() -> None:
    assert gamma(THREE).tolist() == [-2.0, 0.0, 3.0]


def test_gamma_is_computed_in_double_precision() -> None:
    # 2^24 + 2 and 1 are float32 numbers; their difference 2^24 + 1 is not
    assert gamma(table([2.0**24 + 2], [1.0], [1], [1])).tolist() == [2.0**24 + 1]


def test_gamma_per_token_divides_each_side_by_its_own_tokens() -> None:
    assert gamma_per_token(THREE).tolist() == [-2.0, 6.0, 0.5]


def test_gamma_per_token_of_an_empty_answer_is_finite() -> None:
    assert gamma_per_token(table([0.0], [-4.0], [0], [2])).tolist() == [2.0]  # 0/1 + 4/2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("mean", 1 / 3, id="mean"),  # (−2 + 0 + 3)/3
        pytest.param("median", 0.0, id="median"),
        pytest.param("q05", -1.8, id="q05"),  # a tenth of the way from −2 to 0
        pytest.param("q95", 2.7, id="q95"),  # nine tenths of the way from 0 to 3
        pytest.param("per_token_mean", 1.5, id="per-token-mean"),  # (−2 + 6 + 0.5)/3
    ],
)
def test_gamma_stats(name: str, value: float) -> None:
    assert getattr(gamma_stats(THREE), name) == pytest.approx(value, abs=1e-12)


def test_gamma_stats_are_plain_floats() -> None:
    assert {type(value) for value in vars(gamma_stats(THREE)).values()} == {float}


def test_implicit_reward_accuracy_is_the_share_of_rows_with_more_gamma_than_under_the_base_model() -> None:
    # γ −2, 0, 3 against −3, 0, 4: above, equal, below
    base = table([-7, -9, -1], [-4, -9, -5], [2, 3, 1], [4, 1, 2])
    assert implicit_reward_accuracy(THREE, base) == 1 / 3


def test_implicit_reward_accuracy_compares_the_same_rows() -> None:
    with pytest.raises(AssertionError):
        implicit_reward_accuracy(THREE, dataclasses.replace(THREE, rows_digest="other"))


def test_reference_free_accuracy_counts_a_tie_as_wrong() -> None:
    assert reference_free_accuracy(THREE) == 1 / 3  # of −2, 0 and 3 only 3 is above 0
