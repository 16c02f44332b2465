"""Open files of a process: as many as the system allows, and no more."""

from __future__ import annotations

import resource
from contextlib import suppress

_UNLIMITED = 2**20


def raise_file_limit() -> int:
    """Raises the soft limit of open files to the hard one, for this process and its children.

    Returns:
      The limit that holds now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _UNLIMITED if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS has a lower limit than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return _UNLIMITED if soft == resource.RLIM_INFINITY else soft
