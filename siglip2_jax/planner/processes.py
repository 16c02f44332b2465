"""Work in fresh processes side by side, fewer of them where memory runs out."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Task], Result], tasks: Sequence[Task], at_once: int
) -> Iterator[tuple[Task, Result]]:
    """Does every task in a process of its own, which gives back all memory when it ends.

    Args:
      work: a function that a new process can import.
      tasks: its arguments.
      at_once: processes at a time. When one is killed there are fewer from then on, and its task
        is done again.

    Yields:
      Each task when it is done, with what `work` returned.

    Raises:
      ValueError: `work` raised one.
      RuntimeError: a process failed, as its output says, or was killed when no other ran.
    """
    context = multiprocessing.get_context("spawn")  # JAX's threads allow no fork
    waiting = deque(tasks)
    running: dict[Connection, tuple[Task, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                task = waiting.popleft()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(sender, work, task), daemon=True)
                process.start()
                sender.close()
                running[receiver] = task, process
            for receiver in [x for x in wait(list(running)) if isinstance(x, Connection)]:
                task, process = running.pop(receiver)
                try:
                    result = receiver.recv()
                except EOFError:
                    process.join()
                    _check_killed(process, alone=not running)
                    at_once = len(running)
                    waiting.append(task)
                    continue
                process.join()
                if isinstance(result, _UserError):
                    raise ValueError(result.sentence)
                yield task, result
    finally:
        for _, process in running.values():
            process.kill()


class _UserError:
    """A `ValueError` of a child; its own class may not be possible to send."""

    def __init__(self, sentence: str):
        self.sentence = sentence


def _child(sender: Connection, work: Callable[[Task], Result], task: Task) -> None:
    try:
        sender.send(work(task))
    except ValueError as error:
        sender.send(_UserError(str(error)))


def _check_killed(process: BaseProcess, alone: bool) -> None:
    """Raises unless a process was killed, as the kernel does for want of memory, beside others."""
    if (process.exitcode or 0) >= 0:
        raise RuntimeError("a process that compiles failed, as its output above says")
    if alone:
        raise RuntimeError(
            "a process that compiles was killed, most likely for want of memory; plan on a "
            "machine with more"
        )
