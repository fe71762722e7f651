"""Answers that a chat template has spoilt: Axolotl's `chat_template.*` looks for an answer in what the template wrote.

It renders a message of its own with the answer behind it, and takes everything from the first place on where the
answer's text stands. A template that trims the answer hides it (what is taken is then the last character of all), and a
short answer may stand in the words before it. Both are told from the text that came out, and the frame around it.
"""

from dataclasses import dataclass

DUMMY = "[[dummy_message]]"  # the host's own message before the answer


@dataclass(frozen=True)
class Frame:
    """What a chat template writes around an answer.

    Attributes:
        before: in front of it, the dummy message included.
        after: behind it, with the white space at its end.
    """

    before: str
    after: str

    def spoils(self, answer: str) -> bool:
        """Whether a text that was made by this template is no answer, for certain.

        An answer of one character behind a template that writes at most one behind it is not told from a lost one.
        """
        return self._is_lost(answer) or DUMMY in answer or self._is_misplaced(answer)

    def _is_lost(self, answer: str) -> bool:
        """Only the end of the frame is left, and not the whole of it."""
        return len(self.after.rstrip()) > 1 and answer == self.after[-1:].rstrip()

    def _is_misplaced(self, answer: str) -> bool:
        """It begins with the end of what stands before the answer, which begins with the answer itself."""
        end = self.after.rstrip()
        if not answer or not answer.endswith(end):
            return False
        body = answer.removesuffix(end)
        place = self.before.find(answer[0])
        while place >= 0:
            words = self.before[place:]
            content = body[len(words) :]
            if content and body.startswith(words) and body.startswith(content):
                return True
            place = self.before.find(answer[0], place + 1)
        return False
