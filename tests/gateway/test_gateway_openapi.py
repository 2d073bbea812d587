"""The OpenAPI document says what the gateway does; the page shows it without help from outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest

from ps_sglang.gateway.routes.bodies_schema import BODIES, STREAMED
from tests.gateway.gateway_setup import Setup
from tests.gateway.test_gateway_fields import SAMPLING, VALID

SENT: dict[str, dict[str, Any]] = {
    **VALID,
    "/v1/messages": {"model": "a", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]},
    "/v1/responses": {"model": "a", "input": "x"},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [1]},
    "/abort_request": {"rid": "x"},
    "/parse_function_call": {"text": "x", "tool_call_parser": "qwen25"},
    "/separate_reasoning": {"text": "x", "reasoning_parser": "qwen3"},
}


async def document(gateway: Setup) -> Any:
    async with gateway.http.get(gateway.url + "/openapi.json") as response:
        assert response.status == 200
        return await response.json()


async def test_every_route_is_told_with_what_it_does(gateway: Setup) -> None:
    paths = (await document(gateway))["paths"]
    for route in gateway.app.router.routes():
        assert route.resource is not None
        path = route.resource.canonical
        if path.startswith("/models/{model}") or route.method == "HEAD":
            continue
        operation = paths[path][route.method.lower()]
        assert re.match(r"\w[^:]+", operation["summary"]), path
        names = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
        assert names == set(re.findall(r"{(\w+)}", path))
    told = {(method, path) for path, methods in paths.items() for method in methods}
    assert BODIES.keys() <= told
    assert set(STREAMED) <= paths.keys()


@pytest.mark.parametrize("path", SENT)
async def test_a_bodys_schema_takes_what_the_route_takes(gateway: Setup, path: str) -> None:
    schema = BODIES["post", path]
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(SENT[path], schema)
    async with gateway.http.post(gateway.url + path, json=SENT[path]) as response:
        assert response.status == 200
    for name in schema.get("required", ()):
        without = {key: one for key, one in SENT[path].items() if key != name}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(without, schema)
        async with gateway.http.post(gateway.url + path, json=without) as response:
            assert response.status == 400, name


@pytest.mark.parametrize("name", SAMPLING)
def test_a_fields_schema_takes_what_its_check_takes(name: str) -> None:
    right, _, _ = SAMPLING[name]
    for value in [*right, None]:
        jsonschema.validate({"prompt": "x", name: value}, BODIES["post", "/v1/completions"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", "1"), ("top_p", 0), ("top_k", 0), ("n", 129),
        ("stop", ["x"] * 33), ("stop", 5), ("ignore_eos", "true"), ("stop_token_ids", [-1]),
    ],
)  # fmt: skip
def test_a_fields_schema_refuses_what_its_check_refuses(name: str, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"prompt": "x", name: value}, BODIES["post", "/v1/completions"])


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        self.found += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_the_page_needs_nothing_from_elsewhere(gateway: Setup) -> None:
    async with gateway.http.get(gateway.url + "/docs") as response:
        assert response.content_type == "text/html"
        text = await response.text()
    page = Links()
    page.feed(text)
    assert page.found == ["openapi.json"]
    assert "url(" not in text
    for path in (await document(gateway))["paths"]:
        assert path in page.text
    assert "temperature number from 0 to" in page.text
