"""Worker processes are gone when reading ends, however it ends, and their memory with them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Spawned workers run this again.
SCRIPT = """
import os
import sys

from data.samples import example, preparation
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.pipeline import Pipeline
from siglip2_jax.data.sources import Memory

def make(broken):
    examples = [example(i) | ({"captions": ()} if broken else {}) for i in range(24)]
    workers = int(sys.argv[1])
    options = {"workers": workers, "prefetch": 20, "chunk": 8}
    return Pipeline(Memory(tuple(examples)), preparation(), seed=0, **options)

if __name__ == "__main__":
    way = sys.argv[2]
    batches = make(broken=way == "error").batches(Lengths((12,)).reading(0, 60, 8))
    first = next(batches)
    maps = open("/proc/self/maps").read()
    assert "memfd:siglip2_jax" in maps and "/dev/shm" not in maps
    if way == "killed":
        os.kill(os.getpid(), 9)
    if way == "exit":
        raise SystemExit("in the middle")
    if way == "all":
        assert sum(1 for _ in batches) == 59
    batches.close()
"""


SMALL_SHM = """
import numpy as np
import os
import jax
from siglip2_jax.data.collate import blank_row
from siglip2_jax.data.tools.transport import transport_rate
from siglip2_jax.preprocess.image import ImagePreprocessor

def check(batch):
    assert all((array == 0).all() for array in jax.tree.leaves(batch))

if __name__ == "__main__":
    assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == 2**26
    row = blank_row(ImagePreprocessor(16, None), 64, (), 256)
    transport_rate(row, 128, check, steps=2)  # 3 buffers of 101 MB
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a mount of its own")
def test_a_small_dev_shm_does_not_matter(tmp_path):
    """64 MB, as containers have it unless told otherwise."""
    (tmp_path / "reading.py").write_text(SMALL_SHM)
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting needs a privilege that is not there")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = f"{mount} && exec {sys.executable} {tmp_path / 'reading.py'}"
    found = subprocess.run(
        ["unshare", "-m", "sh", "-c", command], env=env, capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0 and found.stderr == "", found.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux lists what is mapped")
@pytest.mark.parametrize(
    ("workers", "way"),
    [(2, "stop"), (1, "all"), (2, "error"), (2, "exit"), (2, "killed")],
)
def test_nothing_is_left(tmp_path, workers, way):
    path = tmp_path / "reading.py"
    path.write_text(SCRIPT)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(path), str(workers), way]
    # Workers hold the pipes: this ends when they have ended. Their memory has no name to be left.
    found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    if way == "error":
        assert found.returncode == 1 and "20 examples in a row could not be used" in found.stderr
        assert "resource_tracker" not in found.stderr
    elif way == "exit":
        assert found.returncode == 1 and found.stderr == "in the middle\n"
    elif way == "killed":
        assert found.returncode == -9
    else:
        assert found.returncode == 0 and found.stderr == ""
