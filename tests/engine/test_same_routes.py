"""Every route that a plain SGLang server has too answers as that server does.

The decoder `twin` has the base's own weights, and both are asked the same. Compared are statuses,
content types, names and types of all fields, and the order of events. The plain server runs with
the plugin's CPU platform and its checks of bodies.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.plain_server import sglang_server, wait_until_healthy
from tests.engine.same_routes import MODEL, Answered, ask, cases, differences
from tests.engine.served import Launch, Models
from tests.support.engine_client import assert_conserved
from tests.support.route_differences import DIFFERENCES, Difference

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Answers = dict[str, tuple[Answered, Answered]]
_PARSERS = ("--tool-call-parser", "qwen25", "--reasoning-parser", "qwen3")
_OPENAI = {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def answers(
    llama: Models, launch: Launch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Answers]:
    """By case, the plain server's answer and the gateway's."""
    flags = (*_PARSERS, "--served-model-name", MODEL, "--enable-response-store")
    log = tmp_path_factory.mktemp("plain") / "plain.log"
    with sglang_server(llama.decoders[MODEL], log, *flags) as plain:
        cluster = launch(llama, MODEL, engine_args=_PARSERS).cluster
        wait_until_healthy(plain)
        yield {name: (ask(plain, one), ask(cluster.url, one)) for name, one in cases().items()}
        assert_conserved(cluster)


@pytest.fixture(scope="module")
def found(answers: Answers) -> set[tuple[str, str]]:
    """Cases with one line for each difference."""
    return {
        (name, line)
        for name, (theirs, ours) in answers.items()
        for line in differences(theirs, ours)
    }


def test_what_differs_is_known(found: set[tuple[str, str]]) -> None:
    unknown = sorted(
        f"{name}: {line}"
        for name, line in found
        if not any(one.explains(name, line) for one in DIFFERENCES)
    )
    assert not unknown, f"{len(unknown)} differences:\n" + "\n".join(unknown)


@pytest.mark.parametrize(
    "known", [one for one in DIFFERENCES if one.lines], ids=lambda one: one.where
)
def test_what_is_known_differs(known: Difference, found: set[tuple[str, str]]) -> None:
    assert any(known.explains(name, line) for name, line in found)


def test_most_is_answered(answers: Answers) -> None:
    """The requests that are meant to be right are, on both."""
    right = [both for name, both in answers.items() if "error" not in name and " GET" not in name]
    succeeded = [both for both in right if both[0].status == both[1].status == 200]
    assert len(succeeded) > 0.85 * len(right)


def test_errors_have_one_form(answers: Answers) -> None:
    refused = {name: ours for name, (_, ours) in answers.items() if ours.status >= 400}
    assert len(refused) > 100
    for name, answer in refused.items():
        assert answer.status < 500, name
        assert answer.kind == "application/json", name
        body = answer.content
        if name.startswith("/v1/messages"):
            assert body.keys() == {"type", "error", "request_id"}, name
            assert body["error"].keys() == {"type", "message"}, name
        else:
            assert body.keys() == {"error"}, name
            assert body["error"].keys() == _OPENAI, name
        assert len(body["error"]["message"]) > 10, name
