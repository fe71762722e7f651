"""Columns of more text than one piece of memory can hold."""

from __future__ import annotations

import pyarrow as pa


def nulls_of_gigabytes() -> list[list[int]]:
    """Rows with a null in 2.5 GB of texts, and of lists of messages: one chunk many times over, which takes 64 MB."""
    from sdpo_plugin.host.data.row_errors import first_nulls

    texts = pa.array(["x" * 1_000_000] * 64)
    messages = pa.array([[{"role": "user", "content": "x" * 1_000_000}]] * 64)
    wrong = pa.array([[{"role": None, "content": "x"}], None, [{"role": "user", "content": None}]])
    columns = [
        pa.chunked_array([texts] * 40 + [pa.array(["x", None, None])]),
        pa.chunked_array([messages] * 40 + [wrong] * 2),
        pa.chunked_array([texts]),
        pa.chunked_array([], type=pa.string()),
    ]
    return [sorted(first_nulls(column)) for column in columns]
