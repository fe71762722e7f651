"""Other references than the step before, and other starts: which tables are computed when, and what trains on them."""

import pytest

from sdpo_plugin.errors import ReferenceTableError
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.run_dir.table_files import load_table
from tests.fakes import CALLS, D_1, D_2, EXTERNAL, HELDOUT, FakeHost, content, digest, make_plan, of_other_rows, run


def trains(host: FakeHost) -> list[tuple[str, float]]:
    """The reference that each step was trained against: its name and mean γ."""
    return [(table.model, float((table.chosen - table.rejected).mean())) for table in host.trained_with]


def files_in(run_dir: RunDir, name: str) -> set[str]:
    return {path.name for path in (run_dir.root / "sdpo" / name).glob("*")}


def test_tables_of_a_fixed_base_reference_are_computed_before_step_1_and_never_again(
    run_dir: RunDir,
) -> None:
    host = FakeHost(early=["M_0"])
    run(host, run_dir, make_plan(reference="base"))
    assert host.calls == [call for call in CALLS if not call.startswith("table of D_")]
    # γ = 2θx with θ = −1 for both: D_1 = 1, 2, 3 and D_2 = 1, −1, 2, 6
    assert trains(host) == [("M_0", -4.0), ("M_0", -4.0)]
    early = [content(host.tables_made_early["M_0", step]) for step in (1, 2)]
    assert [content(table) for table in host.trained_with] == early
    assert files_in(run_dir, "reference") == {"step-1.safetensors", "step-2.safetensors"}
    assert files_in(run_dir, "log-probs") == set()


def test_fixed_base_reference_is_what_evaluations_compare_with(run_dir: RunDir) -> None:
    host = FakeHost(early=["M_0"])
    run(host, run_dir, make_plan(reference="base"))
    assert [{table.model for table in tables.values()} for tables in host.eval_tables] == [{"M_0"}, {"M_0"}]


def test_held_out_sets_have_tables_of_every_model_whatever_the_reference(run_dir: RunDir) -> None:
    """They measure M_t, whatever the reference is."""
    run(FakeHost(early=[EXTERNAL]), run_dir, make_plan(reference=EXTERNAL))
    for column, name in enumerate(HELDOUT):
        for model in ("M_0", "M_1", "M_2"):
            table = load_table(run_dir.heldout(model, column))
            assert (table.model, table.rows_digest) == (model, digest(HELDOUT[name]))
    assert files_in(run_dir, "heldout") == {
        f"{model}-{column}.safetensors" for model in ("M_0", "M_1", "M_2", "reference") for column in (1, 2)
    }


def test_tables_of_an_external_reference_are_computed_before_step_1_and_never_again(run_dir: RunDir) -> None:
    host = FakeHost(early=[EXTERNAL])
    run(host, run_dir, make_plan(reference=EXTERNAL))
    assert host.calls == [call for call in CALLS if not call.startswith("table of D_")]
    # γ = 2 · 0.5 · x: the means of D_1 and D_2
    assert trains(host) == [(EXTERNAL, 2.0), (EXTERNAL, 2.0)]
    assert [load_table(run_dir.reference(step)).model for step in make_plan().steps] == [EXTERNAL] * 2


def test_external_reference_is_what_evaluations_compare_with(run_dir: RunDir) -> None:
    host = FakeHost(early=[EXTERNAL])
    run(host, run_dir, make_plan(reference=EXTERNAL))
    assert [
        {name: (table.model, table.rows_digest) for name, table in tables.items()} for tables in host.eval_tables
    ] == [{name: (EXTERNAL, digest(rows)) for name, rows in HELDOUT.items()}] * 2


def test_tables_that_ordered_the_data_are_kept_and_serve_as_the_reference_of_step_1_only(run_dir: RunDir) -> None:
    host = FakeHost(early=["M_0"])
    run(host, run_dir, make_plan())
    assert host.calls == [call for call in CALLS if call != "table of D_1 by M_0"]
    assert trains(host) == [("M_0", -4.0), ("M_1", 4.0)]
    assert files_in(run_dir, "log-probs") == {"M_0-step-2.safetensors"}
    extra = load_table(run_dir.log_probs("M_0", make_plan().steps[1]))
    assert (extra.model, extra.rows_digest) == ("M_0", digest(D_2))
    assert (extra.chosen - extra.rejected).tolist() == [-2, 2, -4, -12]


def test_tables_that_ordered_the_data_stand_beside_an_external_reference(run_dir: RunDir) -> None:
    host = FakeHost(early=["M_0", EXTERNAL])
    run(host, run_dir, make_plan(reference=EXTERNAL))
    assert trains(host) == [(EXTERNAL, 2.0), (EXTERNAL, 2.0)]
    assert files_in(run_dir, "log-probs") == {"M_0-step-1.safetensors", "M_0-step-2.safetensors"}
    assert {load_table(run_dir.log_probs("M_0", step)).model for step in make_plan().steps} == {"M_0"}


def test_early_table_of_other_rows_is_refused_before_training(run_dir: RunDir) -> None:
    host, plan = FakeHost(early=["M_0"]), make_plan(reference="base")
    with pytest.raises(ReferenceTableError, match=r"the reference table of M_0 has 4 rows .* but the step has 4 rows"):
        run(host, run_dir, of_other_rows(plan, rows_digest="f" * 64))
    assert [call for call in host.calls if call.startswith("train")] == ["train M_0 on D_1"]


def test_table_of_another_model_than_the_plan_names_stops_the_run(run_dir: RunDir) -> None:
    host = FakeHost()  # computes each table by the step before
    with pytest.raises(AssertionError):
        run(host, run_dir, make_plan(reference="base"))
    assert [call for call in host.calls if call.startswith("train")] == ["train M_0 on D_1"]


@pytest.mark.parametrize("reference", ["previous", "base"])
def test_policy_goes_back_to_the_base_model_after_the_reference_table_and_before_training(
    run_dir: RunDir, reference: str
) -> None:
    rows = [D_1, D_2, D_1]
    host = FakeHost(rows=rows, early=["M_0"] if reference == "base" else [])
    run(host, run_dir, make_plan(rows=rows, reference=reference, policy_init="base"))
    expected = [
        *CALLS[: CALLS.index("train M_1 on D_2")],
        "restart from M_1",
        "train M_0 on D_2",
        "export M_2 to staging",
        "report",
        "table of D_3 by M_2",
        "held-out tables by M_2, called M_2",
        "report",
        "settings of step-3",
        "restart from M_2",
        "train M_0 on D_3",
        "export M_3 to staging",
        "report",
        "held-out tables by M_3, called M_3",
        "report",
    ]
    assert host.calls == [call for call in expected if reference == "previous" or not call.startswith("table of D_")]


def test_start_from_the_base_model_leaves_the_reference_where_it_was(run_dir: RunDir) -> None:
    host = FakeHost()
    run(host, run_dir, make_plan(policy_init="base"))
    # θ = −1 for M_0, 1 for M_1: the paper's §3.5, reference M_1 and start M_0
    assert trains(host) == [("M_0", -4.0), ("M_1", 4.0)]


def test_policy_that_starts_from_the_step_before_never_restarts(run_dir: RunDir) -> None:
    host = FakeHost()
    run(host, run_dir)
    assert [call for call in host.calls if call.startswith("restart")] == []
