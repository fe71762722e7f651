"""A hub on this machine that takes what is pushed to it, by the protocol that huggingface_hub speaks."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0" * 40


@dataclass
class Hub:
    """What has been pushed.

    Attributes:
        endpoint: for `HF_ENDPOINT`.
        commits: message and files of each commit, in order.
        asked: method and path of every request.
    """

    endpoint: str = ""
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        """The repository as it is after the last commit."""
        return {path: content for _, files in self.commits for path, content in files.items()}

    def environment(self) -> dict[str, str | None]:
        """Of a process that pushes here. The token is none."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HUB_OFFLINE": None, "HF_TOKEN": "hf_test"}

    def answer(self, path: str, body: bytes) -> dict[str, Any] | None:
        """To a request; None: it is not known here."""
        if path == "/api/whoami-v2":
            return {"type": "user", "name": "me", "orgs": [], "auth": {"type": "access_token"}}
        if path == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization") or "me"
            return {"url": f"{self.endpoint}/{owner}/{asked['name']}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        if "/commit/" in path:
            self._take([json.loads(line) for line in body.splitlines()])
            repository = path.removeprefix("/api/models/").partition("/commit/")[0]
            return {"commitUrl": f"{self.endpoint}/{repository}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        return None

    def _take(self, lines: list[dict[str, Any]]) -> None:
        (header,) = (line["value"] for line in lines if line["key"] == "header")
        files = [line["value"] for line in lines if line["key"] == "file"]
        self.commits.append((header["summary"], {file["path"]: base64.b64decode(file["content"]) for file in files}))


@contextmanager
def local_hub() -> Iterator[Hub]:
    """A hub for the length of a test."""
    hub, lock = Hub(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                found = hub.answer(self.path.partition("?")[0], body)
            if found is None:
                self.send_error(404)
                return
            data = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.do_POST()

        def do_HEAD(self) -> None:
            self.do_POST()

        def log_message(self, *arguments: Any) -> None:
            """Nothing: what was asked is in ``Hub.asked``."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
