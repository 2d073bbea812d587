"""litellm's proxy in front of the demo."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest

from benchmarks.plain import wait_until_ok
from tests.clients.conftest import ENVIRON, PYTHON
from tests.clients.test_packages import PROMPT, text
from tests.engine.plain_server import free_port

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

KEY = f"sk-{secrets.token_hex(32)}"
DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def proxy(demo: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL; it knows `code` and `math`, and a model `gone` that the demo does not serve."""
    folder, port = tmp_path_factory.mktemp("proxy"), free_port()
    models = [
        {
            "model_name": name,
            "litellm_params": {"model": f"openai/{name}", "api_base": f"{demo}/v1", "api_key": "x"},
        }
        for name in ("code", "math", "gone")
    ]
    config, log = folder / "config.yaml", folder / "log"
    config.write_text(json.dumps({"model_list": models}))  # JSON is YAML
    command = [str(PYTHON.with_name("litellm")), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environ = {**ENVIRON, "LITELLM_MASTER_KEY": KEY}
    url = f"http://127.0.0.1:{port}"
    with (
        log.open("w") as output,
        subprocess.Popen(command, env=environ, stdout=output, stderr=output) as process,
    ):
        try:
            wait_until_ok(f"{url}/health/liveliness", process, DEADLINE_S, log)
            yield url
        finally:
            process.terminate()


def test_the_proxy_passes_on_whole_streamed_and_refused(
    proxy: str, plain: Callable[..., Any]
) -> None:
    asked: Any = {"messages": [{"role": "user", "content": PROMPT}], "temperature": 0}
    asked["max_tokens"] = 8
    with openai.OpenAI(base_url=f"{proxy}/v1", api_key=KEY, max_retries=0) as client:
        whole = client.chat.completions.create(model="code", **asked)
        assert whole.choices[0].message.content == text(plain("code", PROMPT))
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == plain("code", PROMPT)["usage"]["prompt_tokens"]
        stream = client.chat.completions.create(model="math", stream=True, **asked)
        deltas = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
        assert "".join(filter(None, deltas)) == text(plain("math", PROMPT))
        with pytest.raises(openai.NotFoundError, match="served"):
            client.chat.completions.create(model="gone", **asked)
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.chat.completions.create(model="code", **{**asked, "temperature": -1})


def test_anthropics_messages_pass_through_the_proxy(proxy: str, plain: Callable[..., Any]) -> None:
    """The proxy asks `/v1/responses` for them, for 16 tokens at least, as OpenAI has it."""
    with anthropic.Anthropic(base_url=proxy, api_key=KEY, max_retries=0) as client:
        message = client.messages.create(
            model="code",
            max_tokens=16,
            messages=[{"role": "user", "content": PROMPT}],
            extra_body={"temperature": 0},
        )
    (block,) = message.content
    assert isinstance(block, anthropic.types.TextBlock)
    assert block.text == text(plain("code", PROMPT, 16))
