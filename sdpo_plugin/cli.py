"""`axolotl sdpo …`, and the same as `python -m sdpo_plugin …`.

The host imports this module to list its commands: what a command needs is imported when it is called.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from sdpo_plugin import crash
from sdpo_plugin.errors import SDPOError
from sdpo_plugin.versions import cannot_load


@contextmanager
def _errors_in_words() -> Iterator[None]:
    """An error that this package knows is its message, and exit code 1."""
    try:
        yield
    except SDPOError as error:
        known: SDPOError = error
    except ImportError as error:  # of the host, which is not there, or is another one
        known = cannot_load(error)
    else:
        return
    print(crash.lines(str(known)), file=sys.stderr)
    raise SystemExit(1)


@click.group()
def sdpo() -> None:
    """Stepwise DPO: what a run would do, what it did, and whether it can run here."""


@sdpo.command()
@click.argument("output_dir", type=click.Path(path_type=Path), nargs=-1, required=True)
def report(output_dir: tuple[Path, ...]) -> None:
    """Make the report of the run in OUTPUT_DIR again, and print it; compare several runs.

    Made from what a run left on disk, also while it trains or if it died: then with how far it came, and how long it
    has to go. Needs no model. Writes sdpo/report.json, report.md and report.html there; a comparison writes nothing.
    """
    from sdpo_plugin.report import command

    with _errors_in_words():
        if len(output_dir) == 1:
            command.report(output_dir[0])
        else:
            command.compare(output_dir)


@sdpo.command()
@click.argument("config", type=click.Path(path_type=Path))
def plan(config: Path) -> None:
    """Print the steps that a run of CONFIG would train.

    Reads and prepares the data as `axolotl preprocess` does, and loads no model. Where log-probs of the base model
    order the rows, the steps are not known yet, and the plan says so.
    """
    with _errors_in_words():
        from sdpo_plugin.host.commands import print_plan

        print_plan(config)


@sdpo.command()
def doctor() -> None:
    """Say whether stepwise DPO runs here: versions, contracts with the host, how the plugin is found, devices.

    Exits with 1 where it does not.
    """
    with _errors_in_words():
        from sdpo_plugin.host.commands import print_findings

        print_findings()
