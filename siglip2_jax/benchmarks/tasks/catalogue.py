"""Catalogue of the tasks of `siglip2 eval --task`."""

from __future__ import annotations

from siglip2_jax.benchmarks.tasks import classification, culture, decoder, probes, retrieval
from siglip2_jax.benchmarks.tasks.base import Task


def all_tasks() -> dict[str, Task]:
    """Every task, by name."""
    modules = classification, retrieval, probes, decoder, culture
    return {task.name: task for module in modules for task in module.TASKS}


def choose_tasks(names: list[str]) -> list[Task]:
    """Tasks by name.

    Raises:
      ValueError: there is no such task.
    """
    tasks = all_tasks()
    if unknown := [name for name in names if name not in tasks]:
        raise ValueError(f"there is no task {unknown[0]!r}; there are {', '.join(tasks)}")
    return [tasks[name] for name in names]
