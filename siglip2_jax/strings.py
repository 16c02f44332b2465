"""Column of texts in memory and in files that are linear in their characters.

NumPy's own arrays of texts give each text the room of the longest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8


@dataclass(frozen=True, eq=False)
class Strings:
    """Texts, joined: text i is `data[offsets[i] : offsets[i + 1]]`, in UTF-8.

    Lone surrogates, by which Python keeps bytes of file names that are no UTF-8, survive.

    Attributes:
      data: the texts, one after the other.
      offsets: where each begins, and the end; one more than there are texts.
    """

    data: UInt8[np.ndarray, " bytes"]
    offsets: Int64[np.ndarray, " offsets"]

    @classmethod
    def join(cls, texts: Iterable[str]) -> Strings:
        """Joins texts, which are taken one at a time."""
        data, offsets = bytearray(), [0]
        for text in texts:
            data += text.encode("utf-8", "surrogatepass")
            offsets.append(len(data))
        return cls(np.frombuffer(bytes(data), np.uint8), np.array(offsets, np.int64))

    @classmethod
    def concatenate(cls, columns: Sequence[Strings]) -> Strings:
        """All texts of several columns, at least one."""
        lengths = [np.diff(column.offsets) for column in columns]
        offsets = np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]))
        return cls(np.concatenate([column.data for column in columns]), offsets)

    def part(self, start: int, stop: int) -> Strings:
        """The texts from `start` up to, not including, `stop`, without a copy of them."""
        offsets = self.offsets[start : stop + 1]
        return Strings(self.data[offsets[0] : offsets[-1]], offsets - offsets[0])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        """Gives the text at an index from 0 on."""
        if not 0 <= index < len(self):
            raise IndexError(f"there is no text {index} among {len(self)}")
        start, end = self.offsets[index : index + 2]
        return self.data[start:end].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))
