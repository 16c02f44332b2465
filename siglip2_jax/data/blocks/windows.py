"""Blocks of one source in memory, or on local disk, from before they are needed until they are not.

In each lane two windows are held at most (see `BlockOrder`): the one that is used, and of the next
a part that grows with what is used, so that requests are spread over time. Where a step uses
several windows, those of four steps are held ahead.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from threading import Condition, Lock, Thread
from typing import Any

from siglip2_jax.data.blocks.cache import Cache
from siglip2_jax.data.blocks.order import BlockOrder
from siglip2_jax.data.patience import patiently
from siglip2_jax.data.sources import Blocked

# Requests at once, of one process.
READERS = 16
# The next window is held as a whole when this share of the present one is left, or so many steps.
_SLACK, _STEPS = 0.25, 4


@dataclass(eq=False)
class _Task:
    call: Callable[[], Any]
    future: Future = field(default_factory=Future)
    taken: bool = False


class Readers:
    """Threads that do what is needed first; they start with the first task."""

    def __init__(self, number: int = READERS) -> None:
        self._number, self._queue, self._ticket = number, [], count()
        self._changed, self._threads, self._closed = Condition(), [], False

    def submit(self, priority: float, task: _Task) -> None:
        """Enters a task, or enters it again to hurry it; small numbers come first."""
        with self._changed:
            if self._closed:
                task.future.cancel()
            if self._closed or task.taken:
                return
            heapq.heappush(self._queue, (priority, next(self._ticket), task))
            if len(self._threads) < self._number:
                self._threads.append(Thread(target=self._run, daemon=True))
                self._threads[-1].start()
            self._changed.notify()

    def close(self) -> None:
        """Cancels what has not begun; threads end when what they are reading has come."""
        with self._changed:
            self._closed = True
            for *_, task in self._queue:
                task.future.cancel()
            self._changed.notify_all()

    def _run(self) -> None:
        while task := self._next():
            if task.future.set_running_or_notify_cancel():
                try:
                    task.future.set_result(task.call())
                except BaseException as error:  # for the thread that asks for the result
                    task.future.set_exception(error)
            del task  # or a thread that waits would hold what it read last

    def _ready(self) -> bool:
        """True where the thread has something to do; drops what was hurried and is done."""
        while self._queue and self._queue[0][-1].taken:
            heapq.heappop(self._queue)
        return self._closed or bool(self._queue)

    def _next(self) -> _Task | None:
        """The task that is needed first, once there is one; None at the end."""
        with self._changed:
            self._changed.wait_for(self._ready)
            if self._closed:
                return None
            *_, task = heapq.heappop(self._queue)
            task.taken = True
            return task


@dataclass(eq=False)
class _Block:
    task: _Task
    uses: int = 0


@dataclass(eq=False)
class _Window:
    keys: range
    needs: deque[tuple[int, int]]  # blocks and their first keys, those that are not held yet
    total: int
    held: set[int] = field(default_factory=set)


class Windows:
    """Examples of one source by lane and key, in one process. Thread-safe; starts with use.

    Attributes:
      held: blocks that are held or asked for.
    """

    def __init__(
        self,
        examples: Blocked,
        order: BlockOrder,
        share: float,
        readers: Readers,
        cache: str | None,
        patience: float,
    ) -> None:
        """Windows of a source.

        Args:
          examples: the source, opened.
          order: the order of its examples.
          share: keys of a lane that are used while all sources together use one; what comes first
            is read first.
          readers: threads, for all sources of a process.
          cache: a local directory where blocks are held; None for memory.
          patience: seconds for which reading goes on after errors that may pass.
        """
        self._examples, self._order, self._share = examples, order, share
        self._readers, self._cache = readers, Cache(cache) if cache is not None else None
        self._patience, self._lock = patience, Lock()
        self._lanes: dict[int, dict[int, _Window]] = {}
        self.held: dict[int, _Block] = {}

    def read(self, lane: int, key: int) -> dict[str, Any]:
        """One example; waits for its block."""
        block, offset = divmod(self._order.example(lane, key), self._order.block_size)
        with self._lock:
            task = self._hold(self._window(lane, key), block, key)
        if not task.taken:
            self._readers.submit(-1.0, task)
        return task.future.result()[offset]

    def advance(self, lane: int, key: int, step: int) -> None:
        """Frees what only keys below this one need, and reads ahead of it.

        Args:
          lane: the lane.
          key: the first one still needed.
          step: keys that a step uses.
        """
        with self._lock:
            windows = self._lanes.setdefault(lane, {})
            for end in [end for end in windows if end + step <= key]:
                self._free(windows.pop(end))
            start = key
            while (share := self._ahead(lane, start, key, step)) > 0:
                window = self._window(lane, start)
                while window.needs and len(window.needs) > (1 - share) * window.total:
                    self._hold(window, *window.needs.popleft())
                start = window.keys.stop

    def _ahead(self, lane: int, start: int, key: int, step: int) -> float:
        """The share of a window's blocks, the one that `start` is in, to be held at a key."""
        length, distance = len(self._order.window_of(lane, start)), start - key
        slack = max(_SLACK * length, _STEPS * step)
        if distance <= slack:
            return 1.0
        return max(0.0, (length - distance) / (length - slack)) if length > slack else 0.0

    def _window(self, lane: int, key: int) -> _Window:
        keys = self._order.window_of(lane, key)
        windows = self._lanes.setdefault(lane, {})
        if keys.stop not in windows:
            needs = sorted(self._order.needs(lane, key).items(), key=lambda item: item[1])
            windows[keys.stop] = _Window(keys, deque(needs), len(needs))
        return windows[keys.stop]

    def _hold(self, window: _Window, block: int, key: int) -> _Task:
        if block not in window.held:
            if block not in self.held:
                task = _Task(partial(self._fetch, block))
                self.held[block] = _Block(task)
                self._readers.submit(key / self._share, task)
            self.held[block].uses += 1
            window.held.add(block)
        return self.held[block].task

    def _free(self, window: _Window) -> None:
        for number in window.held:
            block = self.held[number]
            block.uses -= 1
            if not block.uses:
                block.task.future.cancel()
                del self.held[number]

    def _fetch(self, block: int) -> Sequence[Any]:
        read = partial(self._examples.read_block, block)
        examples = patiently(read, f"block {block} of the data", self._patience)
        return self._cache.keep(examples) if self._cache else examples
