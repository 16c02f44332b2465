"""Storage of a run: files in its workdir that are written, read, renamed and deleted."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress

import jax
from etils import epath

from siglip2_jax.checkpoints.source import absolute
from siglip2_jax.doctor.check import Finding, Findings, failed, passed
from siglip2_jax.outputs import write_whole

BYTES = 8 * 2**20
_WAY_OUT = "choose another --workdir, or give this account the right to write and delete there"


def check_workdir(workdir: str) -> Findings:
    """Writes a file as runs do, reads it back, renames it, lists it and deletes it.

    Nothing stays of it, nor, in a run of one process, of a directory that was not there.
    """
    folder = absolute(workdir)
    alone = _is_local(folder) and jax.process_count() == 1
    missing = [x for x in (folder, *folder.parents) if alone and not x.exists()]
    name = f".doctor-{uuid.uuid4().hex}"
    first, second = folder / name, folder / f"{name}.renamed"
    content = os.urandom(BYTES)
    acts: dict[str, Callable[[], object]] = {
        "write": lambda: write_whole(first, content),
        "read": lambda: _expect(first.read_bytes() == content, "other bytes than were written"),
        "rename": lambda: first.replace(second),
        "list": lambda: _expect(second.name in _names(folder), "no sign of a file that is there"),
        "delete": second.unlink,
        "stays deleted": lambda: _expect(not second.exists(), "a file that was deleted"),
    }
    try:
        for act, work in acts.items():
            finding = _timed(f"workdir: {act}", work)
            yield finding
            if finding.status == "FAIL":
                return
    finally:
        for path in (first, second):
            with suppress(Exception):
                path.unlink(missing_ok=True)
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def _timed(check: str, work: Callable[[], object]) -> Finding:
    start = time.perf_counter()
    try:
        work()
    except Exception as error:
        return failed(check, f"{error}", "no error", _WAY_OUT)
    seconds = time.perf_counter() - start
    rate = f", {BYTES / seconds / 1e6:,.0f} MB/s" if check.endswith(("write", "read")) else ""
    return passed(check, f"{seconds * 1e3:,.0f} ms{rate}", "no error")


def _names(folder: epath.Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise OSError(f"it gave {otherwise}")


def _is_local(path: epath.Path) -> bool:
    return "://" not in os.fspath(path)
