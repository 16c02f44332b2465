"""A stand-in of the Hugging Face Hub: its HTTP API as far as uploads and downloads use it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN, READER = "hf_writer", "hf_reader"


class Hub(ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
      branches: files of each branch, by repository and branch.
      private: whether each repository is private.
      messages: of all commits.
      blobs: large files by SHA-256.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.branches: dict[tuple[str, str], dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.blobs: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/":
            self._send(200, {})
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository, revision, name = found.groups()
            files = self._files(repository, revision)
            if files is None or name not in files:
                return self._send(404, {"error": "Entry not found"})
            self._send(200, files[name], self._version(files), _sha(files[name]))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            files = self._files(found[1], found[2] or "main")
            if files is None:
                return self._send(404, {"error": "Repository not found"})
            siblings = [{"rfilename": name} for name in files]
            info = {"id": found[1], "sha": self._version(files), "siblings": siblings}
            self._send(200, info)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            files = self._files(found[1], found[2]) or {}
            self._send(
                200,
                [
                    {"type": "file", "path": name, "size": len(x), "oid": _sha(x)}
                    for name, x in files.items()
                ],
            )
        else:
            self._send(404, {"error": f"the stand-in knows no {path}"})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (TOKEN, READER):
            return self._send(401, {"error": "Invalid username or password."})
        if token == READER:
            return self._send(403, {"error": "You don't have the rights to create a model"})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            url = f"{self.server.url}/{repository}"
            if repository in self.server.private:
                return self._send(409, {"error": "You already created this model", "url": url})
            private = asked.get("private") or asked.get("visibility") == "private"  # by version
            self.server.private[repository] = private
            self.server.branches[repository, "main"] = {}
            self._send(200, {"url": url})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", path):
            key = found[1], found[2]
            if key in self.server.branches:
                return self._send(409, {"error": "Reference already exists"})
            self.server.branches[key] = dict(self.server.branches[found[1], "main"])
            self._send(200, {})
        elif re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
            self._send(
                200,
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if file["path"].endswith("tensors") else "regular",
                            "shouldIgnore": False,
                        }
                        for file in json.loads(body)["files"]
                    ]
                },
            )
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                x | {"actions": {"upload": {"href": f"{self.server.url}/blobs/{x['oid']}"}}}
                for x in json.loads(body)["objects"]
            ]
            self._send(200, {"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            files = self.server.branches[found[1], found[2]]
            for line in map(json.loads, body.splitlines()):
                self._apply(files, line["key"], line["value"])
            version = self._version(files)
            url = f"{self.server.url}/{found[1]}/commit/{version}"
            self._send(200, {"success": True, "commitOid": version, "commitUrl": url})
        else:
            self._send(404, {"error": f"the stand-in knows no {path}"})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        digest = self.path.rpartition("/")[2]
        if _sha(content) != digest:
            return self._send(400, {"error": "damaged on the way"})
        self.server.blobs[digest] = content
        self._send(200, {})

    def _apply(self, files: dict[str, bytes], kind: str, value: dict[str, Any]) -> None:
        """One line of a commit."""
        if kind == "header":
            self.server.messages.append(value["summary"])
        elif kind == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            files[value["path"]] = self.server.blobs[value["oid"]]
        else:
            raise ValueError(f"the stand-in knows no {kind}")

    def _files(self, repository: str, revision: str) -> dict[str, bytes] | None:
        """Files of a branch or commit."""
        for (name, branch), files in self.server.branches.items():
            if name == repository and revision in (branch, self._version(files)):
                return files
        return None

    def _version(self, files: dict[str, bytes]) -> str:
        return _sha(repr(sorted(files.items())).encode())[:40]

    def _send(self, status: int, content: Any, commit: str = "", etag: str = "") -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if isinstance(content, dict) and "error" in content:
            self.send_header("X-Error-Message", content["error"])
        if commit:
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{etag}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
