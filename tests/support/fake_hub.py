"""A Hugging Face hub on loopback, as far as downloads of single files need one, with faults that a test asks for."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_PATH = re.compile(r"/(?:api/resolve-cache/models/)?([^/]+/[^/]+)/(?:resolve/)?([0-9a-f]{40})/(.+)")


@dataclass
class FakeHub:
    """What the hub has and how it behaves; may be changed while it runs.

    Attributes:
        files: repository to file name to bytes.
        redirects: file name to the address that answers send to, `{path}` is the request's path.
        stated_sizes: file name to the size that is told instead of the true one.
        statuses: file name to the status that is answered instead.
        commit: what `x-repo-commit` says.
        byte_seconds: pause after every byte.
        requests: method, path and headers of everything that was asked.
        url: address of the hub.
    """

    files: dict[str, dict[str, bytes]]
    redirects: dict[str, str] = field(default_factory=dict)
    stated_sizes: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    commit: str = COMMIT
    byte_seconds: float = 0.0
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""


@contextmanager
def running_hub(files: dict[str, dict[str, bytes]]) -> Iterator[FakeHub]:
    """Run a hub with these files."""
    hub = FakeHub(files)

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        hub = self.state
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.requests.append((self.command, self.path, headers))
        match = _PATH.fullmatch(self.path)
        repository, commit, name = match.groups() if match else ("", "", "")
        files = hub.files.get(repository)
        if files is None or commit != COMMIT:
            self._send(404, {"x-error-code": "RepoNotFound"})
        elif name in hub.statuses:
            self._send(hub.statuses[name], {})
        elif name not in files:
            self._send(404, {"x-error-code": "EntryNotFound"})
        elif name in hub.redirects and not self.path.startswith("/api/"):
            self._send(302, self._file_headers(name) | self._location(name))
        else:
            self._send(200, self._file_headers(name), files[name])

    def _location(self, name: str) -> dict[str, str]:
        return {"location": self.state.redirects[name].replace("{path}", self.path)}

    def _file_headers(self, name: str) -> dict[str, str]:
        hub = self.state
        headers = {"x-repo-commit": hub.commit}
        if name in hub.stated_sizes:
            headers["x-linked-size"] = str(hub.stated_sizes[name])
        return headers

    def _send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self._write(body)

    def _write(self, body: bytes) -> None:
        if not self.state.byte_seconds:
            self.wfile.write(body)
            return
        try:
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(self.state.byte_seconds)
        except OSError:
            # The client has had enough.
            return
