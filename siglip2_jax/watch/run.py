"""A run as its workdir shows it: numbers, stages, starts, alarms and its end."""

from __future__ import annotations

import os

from siglip2_jax.checkpoints.source import absolute
from siglip2_jax.train.metrics import EVENTS, METRICS
from siglip2_jax.train.run import CONFIG
from siglip2_jax.watch.events import Alarm, End, Stage, Start, read_event
from siglip2_jax.watch.history import TIME, History
from siglip2_jax.watch.tail import Tail


class WatchedRun:
    """The run of a workdir, so far.

    Attributes:
      name: the workdir.
      history: the numbers.
      stages: of the run; empty where nothing says so.
      starts: the first and all restarts.
      alarms: of objectives, in order.
      end: why the run has ended; None while it goes on, or where it was killed.
    """

    def __init__(self, workdir: str | os.PathLike[str]):
        """Reads what is there.

        Raises:
          FileNotFoundError: the workdir holds no run.
        """
        path = absolute(workdir)
        files = [path / name for name in (CONFIG, METRICS, EVENTS)]
        if not any(file.exists() for file in files):
            raise FileNotFoundError(
                f"{path} holds no run: there is no {CONFIG}, {METRICS} or {EVENTS}; expected the "
                "workdir of `siglip2 train`"
            )
        self.name = os.fspath(workdir)
        self._metrics, self._events = Tail(path / METRICS), Tail(path / EVENTS)
        self._forget_numbers()
        self._forget_events()
        self.refresh()

    def refresh(self) -> None:
        """Reads what is new."""
        if self._metrics.replaced():
            self._forget_numbers()
        for line in self._metrics.lines():
            self.history.add(line)
        if self._events.replaced():
            self._forget_events()
        for line in self._events.lines():
            self._take(read_event(line))

    @property
    def unreadable(self) -> int:
        """Lines that hold neither numbers of a step nor an event."""
        return self.history.unreadable + self._no_events

    @property
    def stage(self) -> Stage:
        """The stage of the newest step."""
        step = max(self.step, 1)
        around = [x for x in self.stages if x.first < step <= x.end]
        return around[0] if around else Stage("run", 0, step)

    @property
    def step(self) -> int:
        """The newest step that has numbers."""
        return max(self.history.step, 0)

    @property
    def last_step(self) -> int | None:
        """The step with which the run is complete; None where nothing says so."""
        return self.stages[-1].end if self.stages else None

    @property
    def alive(self) -> float | None:
        """Time of the last sign of life, in seconds since 1970."""
        times = self.history.get(TIME)
        signs = [times.newest] if len(times) else []
        return max(signs + [start.time for start in self.starts[-1:]], default=None)

    @property
    def state(self) -> str:
        """One of "running", "complete", "stopped" and "failed"."""
        named = {None: "running", "complete": "complete", "SIGTERM": "stopped"}
        return named.get(self.end, "failed")

    def _forget_numbers(self) -> None:
        self.history = History()

    def _forget_events(self) -> None:
        self.stages: tuple[Stage, ...] = ()
        self.starts: list[Start] = []
        self.alarms: list[Alarm] = []
        self.end: str | None = None
        self._no_events = 0

    def _take(self, event: Start | Alarm | End | None) -> None:
        """Takes what a line of `events.jsonl` tells."""
        match event:
            case Start():
                self._end_alarms(event.step)
                before = (self.end or "") if self.starts else None
                self.starts.append(event._replace(before=before))
                self.stages, self.end = event.stages, None
            case Alarm():
                self._end_alarms(event.step, event.objective)
                if event.text:
                    self.alarms.append(event)
            case End():
                self.end = event.reason
            case None:
                self._no_events += 1

    def _end_alarms(self, step: int, objective: str | None = None) -> None:
        """Notes that alarms are over: of one objective, or of all."""
        for i, alarm in enumerate(self.alarms):
            if alarm.over is None and objective in (None, alarm.objective):
                self.alarms[i] = alarm._replace(over=step)
