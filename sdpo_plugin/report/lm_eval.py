"""What lm-eval found of each model, for the report: read from the run directory, shown as models by tasks."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from sdpo_plugin.plan import model_name
from sdpo_plugin.run_dir.evaluations import Evaluation, load_evaluation
from sdpo_plugin.run_dir.ledger import Ledger
from sdpo_plugin.run_dir.paths import RunDir
from sdpo_plugin.text import text_table

NO_VALUE = "–"
Results = Mapping[str, Mapping[str, Mapping[str, Any]]]


def lm_eval_results(run: RunDir, ledger: Ledger) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The results of every model that has been evaluated, and what is missing.

    Returns:
        By model ("M_0" … "M_T") and entry of `sdpo.lm_eval.tasks`: `settings`, `seconds`, `error` (None: none) and
        `results`, which has for each task (of a group: with those below it) its `metrics`, each with `value`, `stderr`
        and `higher_is_better`, `num_samples` and `num_fewshot`. Empty: none was evaluated.
        Lines for the warnings of the report: a damaged or missing file, an entry that failed.
    """
    found, lines = {}, []
    for index in range(len(ledger.records) + 1):
        path = run.lm_eval(model_name(index))
        try:
            found[index] = load_evaluation(path, ledger.run_id)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            lines.append(f"what lm-eval found of {model_name(index)} is not shown: {path} cannot be read: {error}")
    lines += [line for index in range(len(ledger.records) + 1) for line in _doubts(run, ledger, found, index)]
    entries = {name: asdict(evaluation)["entries"] for name, evaluation in _named(found)}
    return entries, lines


def lm_eval_rows(results: Results) -> list[tuple[str, ...]]:
    """A heading, then a line a metric, a column a model: value ± standard error. Empty: nothing was evaluated."""
    lines = dict.fromkeys(line for entries in results.values() for line in _lines(entries))
    rows = [
        (task, metric, *(_cell(entries.get(name), task, metric) for entries in results.values()))
        for name, task, metric in lines
    ]
    return [("lm-eval", "metric", *results), *rows] if rows else []


def lm_eval_table(results: Results) -> str | None:
    """The same as text. None where nothing was evaluated."""
    rows = lm_eval_rows(results)
    return text_table(rows) if rows else None


def _named(found: Mapping[int, Evaluation]) -> Iterator[tuple[str, Evaluation]]:
    return ((model_name(index), found[index]) for index in sorted(found))


def _doubts(run: RunDir, ledger: Ledger, found: Mapping[int, Evaluation], index: int) -> Iterator[str]:
    """What is missing of one model."""
    evaluation, name = found.get(index), model_name(index)
    if evaluation is not None:
        for entry, outcome in evaluation.entries.items():
            if outcome.error is not None:
                yield f"lm-eval failed on {entry} with {name}: {outcome.error.rstrip('.')}"
    elif _is_past(ledger, index) and not run.lm_eval(name).exists() and _is_wanted(ledger, found, index):
        yield f"lm-eval has not evaluated {name}: {run.lm_eval(name)} does not exist"


def _is_past(ledger: Ledger, index: int) -> bool:
    """M_{t-1} is evaluated before the reference table of D_t is made, and M_T before the chain ends."""
    return ledger.records[index].state != "planned" if index < len(ledger.records) else ledger.finished


def _is_wanted(ledger: Ledger, found: Mapping[int, Evaluation], index: int) -> bool:
    ends = index in (0, len(ledger.records))
    return any(ends or evaluation.every_model for evaluation in found.values())


def _lines(entries: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Entry, task and metric of each line; a group that has results of its own stands for the tasks below it."""
    for name, entry in entries.items():
        results = entry["results"]
        shown = [name] if name in results and results[name]["metrics"] else list(results)
        yield from ((name, task, metric) for task in shown for metric in results[task]["metrics"])


def _cell(entry: Mapping[str, Any] | None, task: str, metric: str) -> str:
    if entry is None:
        return NO_VALUE
    if entry["error"] is not None:
        return "failed"
    found = entry["results"].get(task, {"metrics": {}})["metrics"].get(metric)
    if found is None or found["value"] is None:
        return NO_VALUE
    stderr = "" if found["stderr"] is None else f" ± {found['stderr']:.3f}"
    return f"{found['value']:.3f}{stderr}"
