"""A small server that speaks the gateway's /workers, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORKERS = [
    {
        "name": "prefill-0", "role": "prefill", "decoder": None, "url": "http://h:1",
        "state": "good", "problem": None, "load": {"requests": 3},
    },
    {
        "name": "decode-a", "role": "decode", "decoder": "a", "url": "http://h:2",
        "state": "broken", "problem": "it did not answer", "load": {"requests": 0},
    },
    {
        "name": "decode-a-1", "role": "decode", "decoder": "a", "url": "http://h:3",
        "state": "good", "problem": None, "load": {"requests": 1},
    },
]  # fmt: skip


class Gateway:
    """Records what it is asked; `refuse` maps a path to the message that it is refused with."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.calls: list[tuple[str, str, Any]] = []
        self.refuse: dict[str, str] = {}
        self.names: list[str] = []  # for workers that join without one

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        self.calls.append((method, path, body))
        if path in self.refuse:
            return 409, {"error": {"message": self.refuse[path]}}
        if (method, path) == ("GET", "/workers"):
            return 200, {"workers": WORKERS}
        if path == "/workers":
            name = body.get("name") or (self.names.pop(0) if self.names else "new")
        else:
            name = path.split("/")[2]
        state = "draining" if path.endswith("/drain") else "good"
        return 200, {"name": name, "role": "decode", "state": state, "load": {"requests": 2}}


@contextmanager
def serving() -> Iterator[Gateway]:
    """A gateway on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            status, answer = found.answer(self.command, self.path, body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = reply

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Gateway(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield found
        server.shutdown()
        thread.join()
