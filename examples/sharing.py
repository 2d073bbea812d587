"""What the examples have in common: their arguments, and the table of what was shared."""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Turn:
    """What a decoder said, and where the KV of its prompt came from, in tokens.

    `held`: the worker that answered had it. `found`: the base's worker had it, and passed it on.
    All else was computed by the base, for whichever decoder asks next as well.
    """

    decoder: str
    what: str
    said: str
    prompt: int
    held: int
    found: int

    @property
    def computed(self) -> int:
        return self.prompt - self.held - self.found


def openai_turn(what: str, answer: Any) -> Turn:
    """Of a chat completion that was asked for with `return_cached_tokens_details`."""
    message = answer.choices[0].message
    calls = [f"{call.function.name}{call.function.arguments}" for call in message.tool_calls or ()]
    said = " ".join([message.content or "", *calls])
    details = (answer.model_extra.get("sglext") or {}).get("cached_tokens_details")
    return _turn(answer.model, what, said, answer.usage.prompt_tokens, details)


def sglang_turn(state: Any, decoder: str, what: str) -> Turn:
    """Of what `decoder` said in an SGLang program under the name `what`; waits for it."""
    if (reason := state.error()) is not None:
        raise reason
    meta = state.get_meta_info(what)
    return _turn(decoder, what, state[what], meta["prompt_tokens"], meta["cached_tokens_details"])


def _turn(decoder: str, what: str, said: str, prompt: int, details: dict[str, int] | None) -> Turn:
    details = details or {"device": 0, "host": 0}  # nothing was cached
    return Turn(decoder, what, said, prompt, details["device"], details["host"])


def table(turns: list[Turn]) -> str:
    """A line a turn, the sums, and what each decoder found when it spoke for the first time."""
    lines = [f"{'decoder':<10}{'prompt':>8}{'held':>8}{'found':>8}{'computed':>10}  said"]
    for turn in turns:
        said = " ".join(turn.said.split())
        said = said if len(said) <= 56 else said[:53] + "..."
        lines.append(
            f"{turn.decoder:<10}{turn.prompt:>8}{turn.held:>8}{turn.found:>8}{turn.computed:>10}"
            f"  {turn.what}: {said}"
        )
    prompt, computed = sum(turn.prompt for turn in turns), sum(turn.computed for turn in turns)
    lines.append(f"\n{computed} of {prompt} prompt tokens were computed.")
    first = {turn.decoder: turn for turn in reversed(turns)}
    for turn in sorted(first.values(), key=turns.index)[1:]:
        lines.append(
            f"{turn.decoder} had not spoken before its first turn: {turn.held + turn.found} of "
            f"{turn.prompt} tokens were there."
        )
    return "\n".join(lines)


def arguments(description: str, **decoders: str) -> argparse.Namespace:
    """`--url`, `--api-key`, and a flag for each role with its decoder.

    Ends the program if no gateway answers or a decoder is not served.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://localhost:8000", help="the cluster's gateway")
    key = os.environ.get("OPENAI_API_KEY", "none")
    parser.add_argument("--api-key", default=key, help="by default that of OPENAI_API_KEY")
    for role, decoder in decoders.items():
        parser.add_argument(f"--{role}", default=decoder, help=f"a decoder (default {decoder})")
    args = parser.parse_args()
    request = urllib.request.Request(
        f"{args.url}/v1/models", headers={"authorization": f"Bearer {args.api_key}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            served = [model["id"] for model in json.load(response)["data"]]
    except (OSError, ValueError) as error:
        reason = error.read().decode() if isinstance(error, urllib.error.HTTPError) else error
        sys.exit(f"error: no models from {args.url}: {reason}\nIs the cluster up? Try: make demo")
    for role in decoders:
        if (decoder := getattr(args, role)) not in served:
            sys.exit(f"error: --{role} {decoder}: the cluster serves {', '.join(served)}")
    return args
