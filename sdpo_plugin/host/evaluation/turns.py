"""The ranks meet before each batch of an evaluation, so that they end together: done, failed, or asked to stop."""

from collections.abc import Callable

from sdpo_plugin.host.engines import ranks

# What a rank says in a turn; the largest counts.
DONE, WORKING, FAILED = range(3)


class Turns:
    """The turns of one rank. All ranks take the same number of them.

    Args:
        end_if_asked: called by every rank in every turn; it may end the run.

    Attributes:
        is_over: no further turn is taken: all ranks are done, or one has failed.
    """

    def __init__(self, end_if_asked: Callable[[], None]) -> None:
        self._end_if_asked = end_if_asked
        self.is_over = False

    def begin(self) -> None:
        """New work has been shared out."""
        self.is_over = False

    def take(self, mine: int) -> int:
        """Say what this rank is at; the largest of what the ranks say, on every rank."""
        self._end_if_asked()
        state = ranks.largest(mine)
        self.is_over = state != WORKING
        return state
