"""Work on threads keeps its order, its bounds and its errors."""

import threading
import time

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
    assert len(done) <= 6
    count = len(done)
    time.sleep(0.01)
    assert len(done) == count


def test_batches():
    assert list(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batched([], 3)) == []
    assert next(batched(iter(int, 1), 2)) == [0, 0]  # nothing is drawn before its batch
