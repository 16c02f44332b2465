"""Files of what can be made again: where a user's lie, and how damage to one is noticed."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

_DIGEST = sha256().digest_size


def user_cache(name: str) -> Path:
    """The directory of one kind of files in the user's cache (`$XDG_CACHE_HOME` or `~/.cache`)."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "siglip2_jax", name)


def seal(content: bytes) -> bytes:
    """Content behind its SHA-256."""
    return sha256(content).digest() + content


def unseal(sealed: bytes) -> bytes | None:
    """The content of what `seal` gave; None if it is damaged."""
    content = sealed[_DIGEST:]
    return content if sealed[:_DIGEST] == sha256(content).digest() else None
