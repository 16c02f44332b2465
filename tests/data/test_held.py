"""Values that are held: made once for all who want them, the last used of them."""

import pickle
import threading

import pytest

from siglip2_jax.data.held import Held


def test_the_last_used_are_held():
    held, made = Held(2), []

    def get(key):
        return held.get(key, lambda: made.append(key) or -key)

    assert [get(key) for key in (1, 2, 1, 3, 1, 2)] == [-1, -2, -1, -3, -1, -2]
    assert made == [1, 2, 3, 2]
    assert pickle.loads(pickle.dumps(held)).get(2, lambda: "anew") == "anew"


def test_one_thread_makes_what_several_want():
    held, begun, go, made = Held(1), threading.Event(), threading.Event(), []

    def make():
        begun.set()
        assert go.wait(60)
        made.append(1)
        return "value"

    values = []
    threads = [
        threading.Thread(target=lambda: values.append(held.get("key", make))) for _ in range(3)
    ]
    threads[0].start()
    assert begun.wait(60)
    for thread in threads[1:]:
        thread.start()
    go.set()
    for thread in threads:
        thread.join(60)
    assert values == ["value"] * 3 and made == [1]


def test_what_fails_is_tried_again():
    held = Held(1)
    with pytest.raises(ZeroDivisionError):
        held.get("key", lambda: 1 // 0)
    assert held.get("key", lambda: 7) == 7
