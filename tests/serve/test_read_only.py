"""The server writes nothing: it runs on a read-only file system, as a user without a home."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from siglip2_jax.demo import shipped_examples
from siglip2_jax.testing import tiny_embedder

pytest.importorskip("fastapi")
served = pytest.importorskip("served")

pytestmark = pytest.mark.serve

# Python runs it at the start of the server and of each of its workers.
WATCH = """
import os, sys

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link", "os.truncate"}

def watch(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        path = os.fsdecode(args[0])
        writes = isinstance(args[2], int) and args[2] & WRITES
        if writes and not path.startswith(("/dev/", "/proc/")):
            os.write(2, f"WRITES {path}\\n".encode())
    elif event in CHANGES:
        os.write(2, f"WRITES {event} {args[0]}\\n".encode())

sys.addaudithook(watch)
"""


@pytest.fixture
def watched(tmp_path: Path) -> dict[str, str]:
    """Variables of a process whose writes are logged."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    paths = [str(tmp_path / "watch"), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/nonexistent",
    }


def test_nothing_is_written(tmp_path, watched):
    tiny_embedder().save(tmp_path / "tiny")
    image = base64.b64encode(shipped_examples()[0].image.read_bytes()).decode()
    log = tmp_path / "log"
    with served.Served(tmp_path / "tiny", log, variables=watched) as server:
        for path, body in [
            ("/v1/embeddings", {"input": ["a cat"]}),
            ("/v1/embeddings", {"input": [{"image": image}]}),
            ("/v1/classify", {"images": [{"image": image}], "labels": ["a cat"]}),
            ("/v1/rerank", {"query": "a cat", "documents": [{"image": image}]}),
        ]:
            assert server.post(path, body).status == 200
        assert server.post("/v1/embeddings", {"input": [{"image": image[:99]}]}).status == 400
    assert [line for line in log.read_text().splitlines() if line.startswith("WRITES")] == []


def test_a_write_would_be_seen(tmp_path, watched):
    code = f"open({str(tmp_path / 'file')!r}, 'w')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **watched}, capture_output=True, text=True
    )
    assert done.stderr == f"WRITES {tmp_path / 'file'}\n"
