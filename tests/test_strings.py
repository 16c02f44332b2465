"""Columns of texts give back what was joined, in room that grows with the characters."""

import numpy as np
import pytest

from siglip2_jax.strings import Strings

TEXTS = ["a", "", "Zürich", "caf\udce9.jpg", "🦉 \ud800", "trailing\0", ""]


@pytest.mark.parametrize("texts", [TEXTS, [], [""]])
def test_texts_come_back(texts):
    column = Strings.join(iter(texts))
    assert list(column) == texts and len(column) == len(texts)
    again = Strings(column.data.copy(), column.offsets.copy())
    assert [again[i] for i in range(len(again))] == texts
    for outside in (-1, len(texts)):
        with pytest.raises(IndexError, match=f"no text {outside} among {len(texts)}"):
            column[outside]


def test_other_tools_can_read_them():
    column = Strings.join(["Zürich", "", "猫"])
    assert column.data.tobytes() == "Zürich猫".encode()
    assert column.offsets.tolist() == [0, 7, 7, 10]


def test_one_long_text_does_not_stretch_the_others():
    column = Strings.join(["x" * 200_000] + ["word"] * 20_000)
    assert column.data.nbytes + column.offsets.nbytes == 200_000 + 4 * 20_000 + 8 * 20_002
    assert column[20_000] == "word" and np.all(np.diff(column.offsets)[1:] == 4)


def test_a_part_is_no_copy():
    column = Strings.join(["a", "Zürich", "", "猫", "end"])
    for start, stop in ((0, 5), (1, 4), (2, 2), (4, 5)):
        part = column.part(start, stop)
        assert list(part) == list(column)[start:stop]
        assert np.shares_memory(part.data, column.data) or not part.data.size
