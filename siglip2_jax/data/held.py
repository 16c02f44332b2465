"""Values that are made once for all threads that want them, and held while they were last used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Held(Generic[T]):
    """The values last used, by key; pickled without them."""

    def __init__(self, count: int) -> None:
        """Holds `count` values at most."""
        self._count, self._lock = count, Lock()
        self._values: OrderedDict[Hashable, Future[T]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"count": self._count}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """A value that is held, or made by one of the threads that want it; raises its error."""
        with self._lock:
            if waiting := key in self._values:
                self._values.move_to_end(key)
            future = self._values.setdefault(key, Future())
            if len(self._values) > self._count:
                self._values.popitem(last=False)
        if not waiting:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    self._values.pop(key, None)
                future.set_exception(error)
        return future.result()
