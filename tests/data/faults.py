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
