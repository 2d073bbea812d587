"""A chat template given by SGLang's flags: the gateway and all workers render the same prompt."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest
from tokenizers import Tokenizer

from ps_sglang.contract.served_template import served_template_digest
from ps_sglang.contract.tokenizer import chat_template_digest
from ps_sglang.gateway.index import Prompts
from ps_sglang.launch.gateway_config import gateway_config
from tests.engine.served import Launch, Models, Served
from tests.support.engine_client import assert_known, post

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

# The escaped newline is one to SGLang, wherever it stands.
TEMPLATE = """
{% for message in messages %}{{ message['role'] + ':\\n' + message['content'] }}\\n{% endfor %}
{{- 'Functions: ' + tools | tojson if tools else '' }}{{ mood }}
{%- if add_generation_prompt %} assistant:{% endif %}

"""
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}},
}
ASKED = [{"role": "user", "content": "Who?"}]
BODIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tools": {"tools": [TOOL]},
    "tools, other mood": {"tools": [TOOL], "chat_template_kwargs": {"mood": "sad"}},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, launch: Launch, llama: Models) -> Served:
    file = tmp_path_factory.mktemp("templates") / "mine.jinja"
    file.write_text(TEMPLATE)
    flags = ("--chat-template", str(file), "--default-chat-template-kwargs", '{"mood": "glad"}')
    return launch(llama, "a", engine_args=flags)


@pytest.mark.parametrize("name", BODIES)
def test_the_gateway_renders_what_the_engine_does(name: str, served: Served) -> None:
    body = {"messages": ASKED, **BODIES[name]}
    request = {**body, "max_tokens": 2, "model": "a", "cache_salt": name}
    answer = post(f"{served.cluster.url}/v1/chat/completions", request)
    config = gateway_config(served.cluster.plan)
    text = Prompts.load(config.tokenizer, config.chat).chat(body).text.decode()
    assert text.startswith("user:\nWho?\n")
    tokenizer = Tokenizer.from_file(str(served.models.base / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert_known(served.cluster, request, len(ids))


def test_workers_tell_which_template_they_have(served: Served) -> None:
    """By it a worker with another one is refused when it joins."""
    facts = []
    for worker in served.cluster.workers:
        with urllib.request.urlopen(f"{worker.url}/server_info", timeout=60) as response:
            facts.append(json.load(response)["ps_sglang"]["common"]["chat template"])
    template = served.cluster.plan.chat.template
    assert template is not None
    assert set(facts) == {served_template_digest(template)}
    assert facts[0] != chat_template_digest(served.models.base)
