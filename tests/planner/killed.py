"""Work of processes that are killed; light to import, as each is started afresh."""

import os
import signal
import time
from pathlib import Path


def work(task):
    """Its task in capitals; "victim" is killed the first time, and "witness" ends after that."""
    pid = Path(os.environ["KILLED_PID"])
    if task == "always" or (task == "victim" and not pid.exists()):
        pid.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "wrong":
        raise ValueError("a sentence")
    if task == "broken":
        return 1 / 0
    while task == "witness" and (not pid.exists() or is_alive(pid)):
        time.sleep(0.05)
    return task.upper()


def is_alive(pid):
    """True for a process that runs, or that nobody has waited for."""
    try:
        os.kill(int(pid.read_text() or os.getpid()), 0)
    except ProcessLookupError:
        return False
    return True
