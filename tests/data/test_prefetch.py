"""Work on threads keeps its order, its bounds and its errors."""

import gc
import threading
import time
from contextlib import nullcontext

import pytest

from siglip2_jax.data.prefetch import batched, thread_map


def test_order_is_kept_and_work_is_bounded():
    drawn = 0

    def items():
        nonlocal drawn
        for i in range(100):
            drawn += 1
            yield i

    def work(i: int) -> int:
        time.sleep(0.002 * (i % 3 == 0))  # later items are done first
        return i * i

    results = []
    for result in thread_map(work, items(), 5):
        results.append(result)
        assert drawn <= len(results) + 5
    assert results == [i * i for i in range(100)]
    assert list(thread_map(work, [], 5)) == []


def test_work_is_done_on_other_threads():
    threads = set(thread_map(lambda _: threading.get_ident(), range(20), 5))
    assert threading.get_ident() not in threads


def test_errors_come_where_they_belong():
    results = thread_map(lambda x: 1 // x, [1, 1, 0, 1], 8)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_leaving_early_stops_the_work():
    done = []
    results = thread_map(done.append, range(1000), 4)
    next(results)
    results.close()
    time.sleep(0.05)  # what has begun goes on
    assert len(done) <= 5
    count = len(done)
    time.sleep(0.01)
    assert len(done) == count


def test_leaving_early_waits_for_no_thread():
    go_on = threading.Event()
    results = thread_map(lambda i: i == 0 or go_on.wait(120), range(8), 4)
    next(results)
    leaving = threading.Thread(target=results.close, daemon=True)
    leaving.start()
    leaving.join(30)
    waits = leaving.is_alive()
    go_on.set()
    assert not waits


def test_the_garbage_collector_may_close_it_wherever_it_runs():
    """Until Python 3.13 the end of a thread needs a lock that is held while another one starts."""
    results = thread_map(abs, range(100), 4)
    next(results)
    cycle = [results]
    cycle.append(cycle)
    del results, cycle
    lock = getattr(threading, "_shutdown_locks_lock", nullcontext())

    def collect():
        with lock:
            gc.collect()

    collecting = threading.Thread(target=collect, daemon=True)
    collecting.start()
    collecting.join(30)
    assert not collecting.is_alive()


def test_batches():
    assert list(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batched([], 3)) == []
    assert next(batched(iter(int, 1), 2)) == [0, 0]  # nothing is drawn before its batch
