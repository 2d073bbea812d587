"""A gateway without engines, for the tests of its clients.

A subclass says what decoders answer. What was asked is in `calls` and `asked`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]
WORKERS = [
    {
        "name": "prefill-0", "role": "prefill", "decoder": None, "decoders": [],
        "url": "http://h:1",
        "state": "good", "problem": None, "load": {"requests": 3},
        "lease_seconds": 12.3, "cache": {"tokens": 500},
    },
    {
        "name": "decode-a", "role": "decode", "decoder": "a", "decoders": ["a"],
        "url": "http://h:2",
        "state": "broken", "problem": "it did not answer", "load": {"requests": 0},
        "lease_seconds": None, "cache": {"tokens": 0},
    },
    {
        "name": "decode-a-1", "role": "decode", "decoder": "a", "decoders": ["a", "m", "n"],
        "url": "http://h:3",
        "state": "good", "problem": None, "load": {"requests": 1},
        "lease_seconds": None, "cache": {"tokens": 0},
    },
]  # fmt: skip


DECODERS = [
    {
        "name": "a", "kind": "model", "path": None, "weights": None, "requests": 3,
        "workers": [{"name": "decode-a", "lora_name": None, "state": "good", "problem": None}],
    },
    {
        "name": "math", "kind": "adapter", "path": "/math", "weights": "w1:x", "requests": 0,
        "workers": [
            {"name": "lora", "lora_name": "math@1", "state": "good", "problem": "no such folder"},
            {"name": "lora-1", "lora_name": "math@1", "state": "good", "problem": None},
        ],
    },
]  # fmt: skip


LEASE_S = 12.0


class RefusedError(Exception):
    """A subclass raises it to answer with an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class StandInGateway:
    """The gateway's routes.

    `calls` has the method, path and body of all requests, in order, and `asked` the decoder and
    body of those that ask for generation. `refuse` has the message by which a path is refused, and
    `codes` the code that goes with it. `names` are those of workers that join without one, and
    `model_info` what every decoder answers about its model. `cluster_key` is what it tells of the
    workers' key.
    """

    def __init__(self, decoders: tuple[str, ...] = (), max_model_len: int = 2048) -> None:
        self.url = ""
        self.calls: list[tuple[str, str, Any]] = []
        self.asked: list[tuple[str, Json]] = []
        self.refuse: dict[str, str] = {}
        self.codes: dict[str, str] = {}
        self.names: list[str] = []
        self.cluster_key: Json | None = None
        self.model_info: Json = {}
        self._models = [{"id": name, "max_model_len": max_model_len} for name in decoders]
        self._lock = threading.Lock()

    def generate(self, decoder: str, body: Json) -> Json:
        """What the native route answers."""
        raise NotImplementedError

    def chat(self, body: Json) -> Json:
        """What the chat route answers."""
        raise NotImplementedError

    def text(self, path: str) -> tuple[int, str] | None:
        """Status and text of what is answered with no JSON."""
        return None

    def answer(self, method: str, path: str, body: Any) -> Json:
        """One request's answer, or RefusedError."""
        with self._lock:
            self.calls.append((method, path, body))
        if path in self.refuse:
            raise RefusedError(409, self.refuse[path], self.codes.get(path))
        match method, path.split("/")[1:]:
            case "GET", ["v1", "models"]:
                return {"data": self._models}
            case "GET", ["models", _, "get_model_info"]:
                return self.model_info
            case "POST", ["flush_cache"]:
                return {}
            case "POST", ["models", decoder, "generate"]:
                self._note(decoder, body)
                return self.generate(decoder, body)
            case "POST", ["v1", "chat", "completions"]:
                self._note(body["model"], body)
                return self.chat(body)
            case "GET", ["workers"]:
                return {"workers": WORKERS, "cluster_key": self.cluster_key}
            case "POST", ["workers"]:
                return self._worker(
                    body.get("name") or (self.names.pop(0) if self.names else "new")
                )
            case "GET", ["decoders"]:
                return {"decoders": DECODERS}
            case ("POST", ["decoders"]) | (("PUT" | "DELETE"), ["decoders", _]):
                return {"name": "math"}
            case (("POST" | "DELETE"), ["workers", name, *action]):
                return self._worker(name, "draining" if action == ["drain"] else "good")
        raise RefusedError(404, f"no {path}")

    def _note(self, decoder: str, body: Json) -> None:
        with self._lock:
            self.asked.append((decoder, body))

    def _worker(self, name: str, state: str = "good") -> Json:
        worker = {"name": name, "role": "decode", "state": state, "load": {"requests": 2}}
        return {**worker, "lease": {"id": f"lease-{name}", "seconds": LEASE_S}}


@contextmanager
def serving(gateway: StandInGateway) -> Iterator[str]:
    """Serve on a free port; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            if (text := gateway.text(self.path)) is not None:
                self._send(*text)
                return
            try:
                answer = gateway.answer(self.command, self.path, body)
            except RefusedError as error:
                problem = {"message": str(error), "code": error.code}
                self._send(error.status, {"error": problem})
                return
            if body is not None and body.get("stream"):
                self._stream(answer)
            else:
                self._send(200, answer)

        do_GET = do_POST = do_PUT = do_DELETE = reply

        def _stream(self, answer: Json) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for end in range(1, len(answer["text"]) + 1):
                event = {**answer, "text": answer["text"][:end]}
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def _send(self, status: int, content: Json | str) -> None:
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        gateway.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield gateway.url
        finally:
            server.shutdown()
            thread.join()
