"""A gateway without engines: what a decoder says tells its name and how much was said before.

After `n` earlier answers in the prompt, decoder `a` says `<a:n+1>`. Set `reply` for anything else.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Json = dict[str, Any]
Reply = Callable[[str, Json], str]


def counted(decoder: str, body: Json) -> str:
    """The default reply."""
    return f"<{decoder}:{body['text'].count('<') + 1}>"


class Gateway:
    """Serves decoders a, b and c; `asked` is what came in: (decoder, body), in order.

    With `barrier`, no answer is given before as many requests are waiting.
    """

    def __init__(self, tokenizer: Path) -> None:
        self.url = ""
        self.tokenizer = tokenizer
        self.reply: Reply = counted
        self.barrier: threading.Barrier | None = None
        self.asked: list[tuple[str, Json]] = []
        self.flushed = 0

    @property
    def prompts(self) -> list[tuple[str, str]]:
        """What came in: (decoder, prompt)."""
        return [(decoder, body["text"]) for decoder, body in self.asked]

    def generate(self, decoder: str, body: Json) -> tuple[str, Json]:
        """Text and meta info."""
        self.asked.append((decoder, body))
        if self.barrier is not None and body["sampling_params"]["max_new_tokens"] > 1:
            self.barrier.wait(timeout=30)
        meta = {
            "prompt_tokens": len(body["text"]),
            "cached_tokens": 5,
            "cached_tokens_details": {"device": 2, "host": 3},
        }
        return self.reply(decoder, body), meta


@contextmanager
def serving(tokenizer: Path) -> Iterator[Gateway]:
    """A gateway on a free port."""
    gateway = Gateway(tokenizer)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self._send({"data": [{"id": name} for name in "abc"]})
            elif self.path.endswith("/get_model_info"):
                # A name from which SGLang would guess a template, and wrongly.
                name = "/models/llama-2-chat"
                self._send({"model_path": name, "tokenizer_path": str(gateway.tokenizer)})
            else:
                self._send({"error": {"message": f"no {self.path}"}}, status=404)

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/flush_cache":
                gateway.flushed += 1
                self._send({})
                return
            _, _, decoder, route = self.path.split("/")
            assert route == "generate", self.path
            body = json.loads(content)
            text, meta = gateway.generate(decoder, body)
            if body.get("stream"):
                self._stream(text, meta)
            elif text == "error":
                self._send({"error": {"message": "the engine is on fire"}}, status=500)
            else:
                self._send({"text": text, "meta_info": meta})

        def _stream(self, text: str, meta: Json) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for end in range(1, len(text) + 1):
                event = {"text": text[:end], "meta_info": meta}
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def _send(self, content: Json, status: int = 200) -> None:
            data = json.dumps(content).encode()
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
            yield gateway
        finally:
            server.shutdown()
            thread.join()
