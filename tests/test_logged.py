"""What loggers get of a report."""

import pytest

from sdpo_plugin.plan import Plan
from sdpo_plugin.report.build import build_report
from sdpo_plugin.report.logged import MEASURES, TABLES, Logged, logged
from sdpo_plugin.run_dir.paths import RunDir
from tests.fakes import DIAGNOSTICS, HELDOUT, FakeHost, make_plan, run


def given(run_dir: RunDir, plan: Plan) -> list[Logged]:
    """What loggers get at each report of a run."""
    host, found = FakeHost(), []
    host.on_report = lambda: found.append(logged(build_report(run_dir)))
    run(host, run_dir, plan)
    return found


def test_loggers_get_each_model_once_when_it_has_been_looked_at(run_dir: RunDir) -> None:
    m_0, after_1, m_1, after_2, m_2 = given(run_dir, make_plan(diagnostics=DIAGNOSTICS))
    assert after_1 == after_2 == Logged()
    # γ = 2θx, θ = −1, 1, 3: D_1 = 1, 2, 3; val = 1, 2, −1, 2
    assert [found.values["sdpo/train/step-1/gamma"] for found in (m_0, m_1, m_2)] == [-4.0, 4.0, 12.0]
    assert [found.values["sdpo/heldout/val/gamma"] for found in (m_0, m_1, m_2)] == [-2.0, 2.0, 6.0]
    assert "sdpo/heldout/val/kl_to_base" not in m_0.values
    assert m_1.values["sdpo/heldout/val/kl_to_base"] == pytest.approx(5.0)  # ½ · (θ + 1)² · mean x² = ½ · 4 · 2.5
    assert len(m_2.values) == 4 * len(MEASURES)


def test_tables_have_a_row_a_model_and_a_column_a_set(run_dir: RunDir) -> None:
    found = given(run_dir, make_plan(diagnostics=DIAGNOSTICS))[2]
    assert found.columns == ["model", "train step-1", "train step-2", "heldout val", "heldout test"]
    assert list(found.tables) == [f"sdpo/models/{name}" for name in TABLES]
    first, second, third = found.tables["sdpo/models/gamma"]
    assert (first[0], first[1], first[3:]) == ("M_0", -4.0, [-2.0, 8.0])
    assert (second[0], second[1], second[3:]) == ("M_1", 4.0, [2.0, -8.0])
    assert third == ["M_2", None, None, None, None]


def test_names_are_such_that_every_logger_takes_them(run_dir: RunDir) -> None:
    plan = make_plan(heldout={"a/b:c%": (), "test": ()})
    host, found = FakeHost(), []
    host.heldout_tables = lambda model, names: {"a/b:c%": tables["val"], "test": tables["test"]}  # type: ignore[method-assign]
    tables = FakeHost().heldout_tables("M_0", tuple(HELDOUT))
    host.on_report = lambda: found.append(logged(build_report(run_dir)))
    run(host, run_dir, plan)
    assert "sdpo/heldout/a_b_c_/gamma" in found[0].values
