"""Answers that a chat template has spoilt are told from whole ones: by the host's own search, written out here."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_plugin.lost_content import DUMMY, Frame

LLAMA_3 = Frame(
    f"<|start_header_id|>user<|end_header_id|>\n\n{DUMMY}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|eot_id|>",
)
CHATML = Frame(f"<|im_start|>user\n{DUMMY}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n")
BARE = Frame(f"[INST] {DUMMY} [/INST]", "")
ONE = Frame(f"[INST] {DUMMY} [/INST]", "#")


def taken(frame: Frame, answer: str, trims: bool = True) -> str:
    """What Axolotl 0.19 takes for the answer (prompt_strategies/dpo/chat_template.py): from its first place on."""
    rendered = frame.before + (answer.strip() if trims else answer) + frame.after
    return rendered[rendered.find(answer) :].rstrip()


@pytest.mark.parametrize(
    ("frame", "answer", "left"),
    [
        pytest.param(LLAMA_3, " Yes, of course.", ">", id="space-before"),
        pytest.param(LLAMA_3, "Yes, of course.\n", ">", id="newline-after"),
        pytest.param(LLAMA_3, "user", f"user<|end_header_id|>\n\n{DUMMY}<|eot_id|>", id="word-before-the-message"),
        pytest.param(LLAMA_3, "", f"<|start_header_id|>user<|end_header_id|>\n\n{DUMMY}", id="nothing"),
        pytest.param(LLAMA_3, "assistant", "assistant<|end_header_id|>\n\nassistant<|eot_id|>", id="word-after-it"),
        pytest.param(LLAMA_3, "dummy", "dummy_message]]<|eot_id|>", id="word-of-the-message"),
        pytest.param(LLAMA_3, "t", "tart_header_id|>user", id="letter"),  # of <|start_header_id|>
        pytest.param(CHATML, "assistant", "assistant\nassistant<|im_end|>", id="word-after-it-chatml"),
        pytest.param(CHATML, "nt", "nt\nnt<|im_end|>", id="its-end"),
    ],
)
def test_spoilt_answer_is_told(frame: Frame, answer: str, left: str) -> None:
    found = taken(frame, answer)
    assert found.startswith(left)
    assert frame.spoils(found)


@pytest.mark.parametrize("frame", [LLAMA_3, CHATML, BARE, ONE])
@pytest.mark.parametrize("answer", ["Yes.", "A", ">", "<", "\n>", "The user is an assistant", "2 > 1", "|>|>", "nt"])
def test_whole_answer_is_none(frame: Frame, answer: str) -> None:
    """However short, with the frame behind it; 0.21 takes it from behind the frame's beginning."""
    assert not frame.spoils((answer + frame.after).rstrip())


def test_empty_answer_of_0_21_is_none() -> None:
    """It is counted as empty, from its tokens."""
    assert not LLAMA_3.spoils("<|eot_id|>")


def test_answer_that_was_truncated_is_none() -> None:
    """`excess_length_strategy: truncate` cuts its end off."""
    assert not LLAMA_3.spoils("Yes, of")
    assert not LLAMA_3.spoils("Y")


def test_one_character_is_not_told_from_a_frame_that_ends_with_one() -> None:
    assert taken(ONE, " Yes.") == "#"
    assert not ONE.spoils("#")
    assert taken(BARE, " Yes.") == "."
    assert not BARE.spoils(".")


WORDS = st.text("userantdmy_[]|<>\n Yi.", max_size=12)


@given(answer=WORDS.filter(lambda text: text.strip() != ""), frame=st.sampled_from([LLAMA_3, CHATML]))
def test_told_are_those_that_are_not_what_was_rendered(answer: str, frame: Frame) -> None:
    """Whatever the answer: it is spoilt where the search does not end at the answer's own place.

    White space before it that the frame ends with, too, is found there: the answer is whole. An empty text is refused
    by the host itself.
    """
    whole = (answer.strip() + frame.after).rstrip()
    found = taken(frame, answer)
    if found and found.lstrip() != whole:
        assert frame.spoils(found)


@given(answer=st.text("abcxyz <>|.\n", min_size=3, max_size=30), frame=st.sampled_from([LLAMA_3, CHATML, BARE, ONE]))
def test_no_whole_answer_is_told(answer: str, frame: Frame) -> None:
    assert not frame.spoils((answer.strip() + frame.after).rstrip())
