"""The demo: a coder, a tool caller and a calculator answer in one context, prefilled once.

    python -m ps_sglang.demo [--once] [--port 8000]

Run by `make demo`. Prepares the demo's base, launches the cluster, whose decode worker serves all
three adapters, asks each of them a question of its kind through the `openai` client, all with the
same tools, shows the call and what was shared, and serves until Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ps_sglang.errors import PsSglangError
from ps_sglang.extras import require_extra

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessage, ChatCompletionToolParam

# All three decoders get them: one context, prefilled once. Only the tools decoder is to call them.
TOOLS: Final[list[ChatCompletionToolParam]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather_forecast",
            "description": "Get the weather forecast of a city for a number of days.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "The name of the city."},
                    "days": {"type": "integer", "description": "The number of days."},
                },
                "required": ["city", "days"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "convert_currency",
            "description": "Convert an amount of money from one currency to another.",
            "parameters": {
                "type": "object",
                "properties": {
                    "amount": {"type": "number", "description": "The amount of money."},
                    "from_currency": {
                        "type": "string",
                        "description": "The currency to convert from.",
                    },
                    "to_currency": {"type": "string", "description": "The currency to convert to."},
                },
                "required": ["amount", "from_currency", "to_currency"],
            },
        },
    },
]
# Decoder -> a question of its kind.
QUESTIONS: Final = {
    "code": (
        "Write a Python function `summarize(xs)` that takes a list of integers `xs`. First, keep "
        "only the even numbers; then square each number. Finally, return the sum. Reply with the "
        "code only."
    ),
    "tools": "What will the weather be in Lisbon for the next 5 days?",
    "math": (
        "Your task is to count how many legs there are in total when given a list of animals.\n\n"
        "Now, how many legs are there in total if you have 3 dogs, 2 birds, 4 spiders?\n"
        "Work it out in short steps and end with #### and the number."
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Launch, ask, show, serve."""
    parser = argparse.ArgumentParser(
        prog="python -m ps_sglang.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--once", action="store_true", help="stop after the questions")
    parser.add_argument("--port", type=int, default=8000, help="gateway port (default 8000)")
    args = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # whoever reads a pipe sees the answers come
    try:
        return _run(args.port, args.once)
    except PsSglangError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def _run(port: int, once: bool) -> int:
    require_extra("demo", "the demo")
    from ps_sglang.launch import Cluster, ClusterSpec

    spec = ClusterSpec("base", tuple(QUESTIONS), port=port)
    with Cluster.start(spec, on_progress=_on_progress) as cluster:
        _ask(cluster.url)
        if not once:
            print(f"\nServing on {cluster.url} until Ctrl-C. Try:\n")
            print(_curl(cluster.url))
            cluster.wait()
    return 0


def _ask(url: str) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    asked = computed = 0
    for name, question in QUESTIONS.items():
        answer = client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": question}],
            tools=TOOLS,
            max_tokens=96,
            temperature=0,
        )
        usage = answer.usage
        assert usage is not None
        details = usage.prompt_tokens_details
        cached = (details.cached_tokens if details else 0) or 0
        text = _answer_text(answer.choices[0].message)
        print(f"\n{name}: {_indented(question)}\n\n   {_indented(text)}\n")
        print(f"   {usage.prompt_tokens} prompt tokens, {cached} of them already prefilled")
        asked += usage.prompt_tokens
        computed += usage.prompt_tokens - cached
    print(f"\nShared: {asked} prompt tokens asked of three models, {computed} computed.")


def _answer_text(message: ChatCompletionMessage) -> str:
    """The answer's text, and each call on a line of its own."""
    lines = [(message.content or "").strip()]
    for call in message.tool_calls or ():
        if call.type == "function":
            lines.append(f"call {call.function.name} with {call.function.arguments}")
    return "\n".join(filter(None, lines))


def _indented(text: str) -> str:
    return text.replace("\n", "\n   ")


def _curl(url: str) -> str:
    from ps_sglang.launch.serve import chat_body

    question = "State the final answer to the following arithmetic problem: 12 + 30 ="
    body = chat_body("math", question)
    return f"  curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"


def _on_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
