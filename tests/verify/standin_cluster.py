"""A cluster in one thread: Hugging Face models behind the gateway's HTTP routes.

It generates token by token, which is also the straightforward way to check the reference by.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Json = dict[str, Any]
Handle = Callable[[Json], Json]


class Models:
    """The base's and the decoders' checkpoints, in float32."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folders["base"])
        self._models = {name: _load(folder) for name, folder in folders.items()}

    @torch.no_grad()
    def logits(self, decoder: str, prompt: list[int], length: int, reader: str) -> torch.Tensor:
        """Logits [length, vocabulary] of greedy decoding; `reader` computes the prompt's KV."""
        ids, past, rows = torch.tensor([prompt]), None, []
        if len(prompt) > 1:
            past = self._models[reader](ids[:, :-1], use_cache=True).past_key_values
        token = ids[:, -1:]
        for _ in range(length):
            output = self._models[decoder](token, past_key_values=past, use_cache=True)
            past, row = output.past_key_values, output.logits[0, -1]
            token = row.argmax()[None, None]
            rows.append(row)
        return torch.stack(rows)


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


class StandIn:
    """Serves decoders `names`; `own_kv` is the mistake that verify is there to find."""

    def __init__(self, models: Models, names: tuple[str, ...], own_kv: bool = False) -> None:
        self._models, self._names, self._own_kv = models, names, own_kv
        self._lock = threading.Lock()
        self.asked: list[tuple[str, Json]] = []

    def get(self, path: str) -> Json:
        assert path == "/v1/models", path
        return {"data": [{"id": name, "max_model_len": 2048} for name in self._names]}

    def post(self, path: str, body: Json) -> Json:
        with self._lock:
            self.asked.append((path, body))
            return self._chat(body) if path == "/v1/chat/completions" else self._native(path, body)

    def _native(self, path: str, body: Json) -> Json:
        assert path.startswith("/models/"), path
        assert path.endswith("/generate"), path
        length = body["sampling_params"]["max_new_tokens"]
        tokens, logprob = self._greedy(path.split("/")[2], body["input_ids"], length)
        meta = {"output_token_logprobs": [[logprob, tokens[0], None]]}
        return {"output_ids": tokens, "meta_info": meta}

    def _chat(self, body: Json) -> Json:
        prompt = self._models.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        tokens, logprob = self._greedy(body["model"], prompt, body["max_tokens"])
        choice = {
            "prompt_token_ids": prompt,
            "response_token_ids": tokens,
            "logprobs": {"content": [{"logprob": logprob}]},
        }
        return {"choices": [choice]}

    def _greedy(self, decoder: str, prompt: list[int], length: int) -> tuple[list[int], float]:
        reader = decoder if self._own_kv else "base"
        logits = self._models.logits(decoder, prompt, length, reader)
        return logits.argmax(-1).tolist(), logits[0].log_softmax(-1).max().item()


@contextmanager
def serving(stand_in: StandIn) -> Iterator[str]:
    """Serve on a free port; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(stand_in.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(stand_in.post(self.path, body))

        def _answer(self, content: Json) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
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
