"""Worker processes and their shared memory are gone when reading ends, however it ends."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

# Names of shared memory tell it from that of other processes; spawned workers run this again.
SCRIPT = """
import os
import sys
import time
from multiprocessing import shared_memory
shared_memory._SHM_NAME_PREFIX = "/" + sys.argv[1]

from data.samples import example, preparation
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.pipeline import Pipeline
from siglip2_jax.data.sources import Memory

def make(broken):
    examples = [example(i) | ({"captions": ()} if broken else {}) for i in range(24)]
    workers = int(sys.argv[2])
    options = {"workers": workers, "prefetch": 20, "chunk": 8}
    return Pipeline(Memory(tuple(examples)), preparation(), seed=0, **options)

def shared():
    return sum(name.startswith(sys.argv[1]) for name in os.listdir("/dev/shm"))

if __name__ == "__main__":
    way = sys.argv[3]
    batches = make(broken=way == "error").batches(Lengths((12,)).reading(0, 60, 8))
    first = next(batches)
    while shared() < 60:  # fifteen batches ahead
        time.sleep(0.01)
    if way == "killed":
        os.kill(os.getpid(), 9)
    if way == "all":
        assert sum(1 for _ in batches) == 59
    batches.close()
"""


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory has no names to list")
@pytest.mark.parametrize(
    ("workers", "way"),
    [
        (2, "stop"),
        *(
            pytest.param(*x, marks=pytest.mark.slow)
            for x in ((1, "all"), (2, "error"), (2, "killed"))
        ),
    ],
)
def test_nothing_is_left(tmp_path, workers, way):
    path, prefix = tmp_path / "reading.py", f"t{uuid.uuid4().hex[:7]}"
    path.write_text(SCRIPT)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(path), prefix, str(workers), way]
    # Workers hold the pipes: this ends when they have ended, and the tracker of their memory.
    found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    if way == "error":
        assert found.returncode == 1 and "20 examples in a row could not be used" in found.stderr
        assert "resource_tracker" not in found.stderr
    elif way == "killed":  # nobody is there to free anything but the tracker, which says so
        assert found.returncode == -9
    else:
        assert found.returncode == 0 and found.stderr == ""
    left = [path for path in Path("/dev/shm").iterdir() if path.name.startswith(prefix)]
    for path in left:
        path.unlink()
    # A worker that dies between making an array and telling the tracker of it leaves that one.
    assert len(left) <= (workers if way == "killed" else 0)
