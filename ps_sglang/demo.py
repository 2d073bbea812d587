"""The demo: three decoders answer about one context that was prefilled once.

    python -m ps_sglang.demo [--once] [--port 8000]

Run by `make demo`. Prepares the demo models, launches the cluster, asks each decoder one question
through the `openai` client, shows what was shared, and serves until Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Final

from ps_sglang.errors import PsSglangError

CONTEXT: Final = """\
You work on the support desk of a small library. The library opens from 9:00 to 18:00 on weekdays
and from 10:00 to 14:00 on Saturday, and is closed on Sunday. A card costs 5 euros a year and is
free below the age of 16. A reader may borrow up to 8 books for 4 weeks and renew each of them
twice, unless somebody else has reserved it. A late book costs 20 cents a day, at most 3 euros.
Rooms for groups of 4 to 10 people can be booked for 2 hours at a time, one week ahead. Printing
costs 10 cents a page. The reading room on the second floor is a quiet zone, without phone calls.
Answer the reader in one or two short sentences."""
QUESTIONS: Final = (
    "When are you open on Saturday?",
    "How many books may I borrow, and for how long?",
    "What does a library card cost for my son, who is 12?",
)
DECODERS: Final = ("a", "b", "c")


def main(argv: Sequence[str] | None = None) -> int:
    """Launch, ask, show, serve."""
    parser = argparse.ArgumentParser(prog="python -m ps_sglang.demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop after the questions")
    parser.add_argument("--port", type=int, default=8000, help="gateway port (default 8000)")
    args = parser.parse_args(argv)
    try:
        return _run(args.port, args.once)
    except PsSglangError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def _run(port: int, once: bool) -> int:
    from ps_sglang.launch import Cluster, ClusterSpec

    with Cluster.start(ClusterSpec("base", DECODERS, port=port), say=_say) as cluster:
        _ask(cluster.url)
        if not once:
            print(f"\nServing on {cluster.url} until Ctrl-C. Try:\n")
            print(_curl(cluster.url))
            cluster.wait()
    return 0


def _ask(url: str) -> None:
    import openai

    print("\nThe three decoders are stand-ins (the base with seeded noise), not trained ones.\n")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    asked = computed = 0
    for name, question in zip(DECODERS, QUESTIONS, strict=True):
        answer = client.chat.completions.create(
            model=name,
            messages=[
                {"role": "system", "content": CONTEXT},
                {"role": "user", "content": question},
            ],
            max_tokens=48,
            temperature=0,
        )
        usage = answer.usage
        assert usage is not None
        details = usage.prompt_tokens_details
        cached = (details.cached_tokens if details else 0) or 0
        print(f"{name}: {question}\n   {(answer.choices[0].message.content or '').strip()}")
        print(f"   {usage.prompt_tokens} prompt tokens, {cached} of them already prefilled\n")
        asked += usage.prompt_tokens
        computed += usage.prompt_tokens - cached
    print(f"Shared: {asked} prompt tokens asked of three models, {computed} computed.")


def _curl(url: str) -> str:
    body = '{"model": "b", "messages": [{"role": "user", "content": "Hello!"}]}'
    return f"  curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
