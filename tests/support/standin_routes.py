"""The stand-in engine's routes that generate nothing, in the shapes of SGLang 0.5.23.

Its tokens are words, numbered in the order in which they come.
"""

from __future__ import annotations

from typing import Any, Protocol

from aiohttp import web


class Engine(Protocol):
    """What these routes need of a worker; `questions` gets each body with its path."""

    name: str
    ready: bool
    questions: list[tuple[str, Any]]
    confused: bool


def add_routes(router: web.UrlDispatcher, worker: Engine) -> None:
    """Register them all."""

    async def body(request: web.Request) -> Any:
        content = await request.json()
        worker.questions.append((request.path, content))
        return content

    async def tokenize(request: web.Request) -> web.Response:
        asked = await body(request)
        texts = asked.get("prompt")
        if texts is None:
            texts = " ".join(str(one.get("content")) for one in asked["messages"])
        tokens = [
            [*range(len(one.split()))] for one in ([texts] if isinstance(texts, str) else texts)
        ]
        counts = [len(one) for one in tokens]
        if isinstance(texts, str):
            return web.json_response({"tokens": tokens[0], "count": counts[0], "max_model_len": 9})
        return web.json_response({"tokens": tokens, "count": counts, "max_model_len": 9})

    async def detokenize(request: web.Request) -> web.Response:
        tokens = (await body(request))["tokens"]
        return web.json_response({"text": " ".join(map(str, tokens))})

    async def function_call(request: web.Request) -> web.Response:
        return web.json_response({"normal_text": (await body(request))["text"], "calls": []})

    async def reasoning(request: web.Request) -> web.Response:
        thought, _, text = (await body(request))["text"].partition("</think>")
        if worker.confused:
            return web.Response(status=500, text="Internal Server Error")
        return web.json_response({"reasoning_text": thought, "text": text})

    async def loads(request: web.Request) -> web.Response:
        if request.query.get("dp_rank", "0") != "0":
            return web.json_response({"message": "There is no such rank"}, status=400)
        load = {"dp_rank": 0, "num_running_reqs": 1}
        return web.json_response({"timestamp": "now", "version": "0.5.23", "loads": [load]})

    async def health(request: web.Request) -> web.Response:
        return web.Response(status=200 if worker.ready else 503)

    router.add_post("/v1/tokenize", tokenize)
    router.add_post("/v1/detokenize", detokenize)
    router.add_post("/parse_function_call", function_call)
    router.add_post("/separate_reasoning", reasoning)
    router.add_get("/v1/loads", loads)
    router.add_get("/health_generate", health)
