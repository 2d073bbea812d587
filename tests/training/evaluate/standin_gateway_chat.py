"""A gateway's routes that the evaluator uses, with fixed words for answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class StandIn:
    """Serves the decoder `a`.

    `refuse_after` is the number of answers after which each request fails, `read_as` what is put
    in front of every prompt's token ids.
    """

    tokenizer: Any
    refuse_after: int = 1000
    read_as: tuple[int, ...] = ()
    room: int = 2048
    asked: list[dict[str, Any]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def models(self) -> dict[str, Any]:
        return {"data": [{"id": "a", "max_model_len": self.room}]}

    def chat(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self.lock:
            self.asked.append(body)
            if len(self.asked) > self.refuse_after:
                return 503, {"error": {"message": "worker decode-a is gone"}}
            prompt = self.tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, return_dict=True
            )["input_ids"]
            said = self.tokenizer("yes").input_ids
        choice = {
            "message": {"content": "yes"},
            "prompt_token_ids": [*self.read_as, *prompt],
            "response_token_ids": [*said, 2],
        }
        return 200, {"choices": [choice]}


@contextmanager
def serving(stand_in: StandIn) -> Iterator[str]:
    """Serve on a free port; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/v1/models", self.path
            self._answer(200, stand_in.models())

        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions", self.path
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(*stand_in.chat(body))

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
