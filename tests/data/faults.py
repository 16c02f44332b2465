"""Sources whose reads fail as machines fail, picklable, for tests of several files."""

import errno
import os
from dataclasses import dataclass, field

from data.samples import example


@dataclass
class Failing:
    """Examples of `samples`, of which some raise an OSError so many times before they are read."""

    length: int = 50
    number: int = errno.EIO
    times: dict = field(default_factory=dict, repr=False)

    def open(self):
        return self

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if self.times.get(index, 0):
            self.times[index] -= 1
            raise OSError(self.number, os.strerror(self.number), f"/mnt/{index}.jpg")
        return example(index)


ALWAYS = 10**9


@dataclass
class FailingBlocks(Failing):
    """The same, read in blocks of five, whose numbers those of `times` are."""

    block_size: int = 5
    remote: bool = True

    def read_block(self, block):
        super().__getitem__(block)
        return [example(i) for i in range(5 * block, min(5 * block + 5, self.length))]
