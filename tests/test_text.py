"""Tables of text."""

from sdpo_plugin.text import text_table


def test_text_table_sets_columns_of_numbers_to_the_right_with_their_heading() -> None:
    rows = [
        ("name", "value", "mixed", "known"),
        ("a", "-1.50", "7", "–"),
        ("longer", "+12", "n/a", ""),
        ("b", "1,000,000", "1,000,000", "0.5"),
    ]
    assert text_table(rows).splitlines() == [
        "name        value  mixed      known",
        "------  ---------  ---------  -----",
        "a           -1.50  7              –",
        "longer        +12  n/a",
        "b       1,000,000  1,000,000    0.5",
    ]


def test_text_table_of_a_heading_alone() -> None:
    assert text_table([("step", "rows")]).splitlines() == ["step  rows", "----  ----"]
