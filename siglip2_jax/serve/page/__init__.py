"""The page that a server shows at `/`: one file, and the rules under which a browser runs it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

FILE = Path(__file__).parent / "index.html"
_INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


def read_page() -> tuple[str, dict[str, str]]:
    """Reads the page and the headers it is sent with.

    The browser runs the page's own style and script, known by their hashes, and nothing else; the
    page talks to this server alone.
    """
    html = FILE.read_text(encoding="utf-8")
    hashes = {tag: _hash(content) for tag, content in _INLINE.findall(html)}
    policy = {
        "default-src": "'none'",
        "style-src": hashes["style"],
        "script-src": hashes["script"],
        "img-src": "data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return html, {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
