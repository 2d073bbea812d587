"""What keys, limits and metrics add to a request.

    python -m benchmarks.gateway_cost [--quick]

Two gateways stand before the same stand-in engines, which answer at once. One has a file of keys
with all limits, limits of its own, and all metrics; the other one has none of them. One client asks
both in turn, in pairs whose order changes by chance, and the figure is the median over the pairs'
differences. Both are started anew for each round. The CPU time of a request counts what a gateway
does behind its answer, too, and depends less on what else the machine does.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.gateway import latency, systems
from benchmarks.gateway.client import Client
from benchmarks.gateway.compared import engine
from benchmarks.gateway.latency import Through
from benchmarks.gateway.vocabulary import write_tokenizer
from benchmarks.report import parser, run, save, spread
from ps_sglang.gateway.access import key_file
from ps_sglang.gateway.access.key_file import KeyEntry
from ps_sglang.gateway.access.limits import KeyLimits
from ps_sglang.gateway.access.principal import KeyRole, Principal
from ps_sglang.gateway.limits import GatewayLimits

WITH: Final = "with"
WITHOUT: Final = "without"
BAR_MS: Final = 0.1
_MANY: Final = 10**9  # no limit may be met
_LIMITS: Final = GatewayLimits(_MANY, _MANY, _MANY, request_timeout=600.0)
_OTHER_KEYS: Final = 100
_KINDS: Final = ("whole", "streamed")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status is 0 whatever the figures are."""
    options = parser("gateway_cost", __doc__, "few pairs and rounds").parse_args(argv)
    return run("gateway_cost", lambda: _measure(quick=options.quick, publish=options.publish))


def _measure(*, quick: bool, publish: bool) -> int:
    rounds, pairs = (2, 100) if quick else (7, 1500)
    taken: dict[str, list[dict[str, float]]] = {kind: [] for kind in _KINDS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder / "tokenizer")
        key = _write_keys(folder / "keys")
        configs = [engine(folder, "prefill-0"), engine(folder, "decoder", decoder="decoder")]
        with systems.fleet(folder / "tokenizer", configs) as engines:
            for number in range(rounds):
                systems.forget(engines)
                for kind, found in _round(engines, folder, key, pairs, number).items():
                    taken[kind].append(found)
                    print(f"round {number + 1}, {kind:<8} {_line(found)}", flush=True)
    figures: dict[str, Any] = {"rounds": rounds, "pairs": pairs, "bar_ms": BAR_MS}
    for kind, of_rounds in taken.items():
        figures[kind] = {name: spread([one[name] for one in of_rounds]) for name in of_rounds[0]}
    save("gateway_cost", figures, quick=quick, publish=publish)
    for kind in taken:
        added = figures[kind]["added_ms"]
        print(
            f"gateway_cost: {kind} answers: keys, limits and metrics add "
            f"{added['median']:.3f} ms ({added['min']:.3f} to {added['max']:.3f}), "
            f"{figures[kind]['added_cpu_ms']['median']:.3f} ms of CPU; the bar is {BAR_MS} ms"
        )
    return 0


def _write_keys(path: Path) -> str:
    """A file with many keys; returns one of them."""
    limits = KeyLimits(requests_at_once=_MANY, requests_per_minute=_MANY, queued_tokens=_MANY)
    secrets = [key_file.new_secret() for _ in range(_OTHER_KEYS + 1)]
    path.write_text(
        "".join(
            f"{KeyEntry(_holder(number, limits), key_file.digest_of(secret))}\n"
            for number, secret in enumerate(secrets)
        )
    )
    return secrets[-1]


def _holder(number: int, limits: KeyLimits) -> Principal:
    return Principal(f"key-{number}", KeyRole.USER, f"tenant-{number}", limits)


def _round(
    engines: systems.Fleet, folder: Path, key: str, pairs: int, number: int
) -> dict[str, dict[str, float]]:
    """One round with new gateways; times in milliseconds."""
    full = systems.gateway(engines, folder, WITH, api_keys=str(folder / "keys"), limits=_LIMITS)
    with full as one, systems.gateway(engines, folder, WITHOUT, "benchmarks.gateway.bare") as other:
        served = {WITH: one, WITHOUT: other}
        found = {}
        for kind, mode in (
            ("whole", latency.MODES["whole"]),
            ("streamed", latency.MODES["streamed"]),
        ):
            found[kind] = uvloop.run(_in_turn(served, key, mode, pairs, number))
        return found


async def _in_turn(
    served: dict[str, systems.Served], key: str, mode: latency.Mode, pairs: int, seed: int
) -> dict[str, float]:
    """Ask each gateway as often, one request at a time."""
    source = random.Random(seed)
    client = Client(key=key)
    targets = {name: Through(gateway) for name, gateway in served.items()}
    for target in targets.values():
        await latency.warm_up(target, ("decoder",), client)
    # Prompts of one length, each new to whoever gets it.
    chats = iter(latency.chats(("decoder",), 2 * pairs, seed, stream=mode.stream))
    times: dict[str, list[float]] = {name: [] for name in targets}
    began = {name: sum(systems.cpu_ms(gateway)) for name, gateway in served.items()}
    for _ in range(pairs):
        for name in source.sample(list(targets), len(targets)):
            decoder, body = next(chats)
            reply = await targets[name].post(client, decoder, body)
            times[name].append(1000 * (reply.done - reply.sent))
    cpu = {
        name: (sum(systems.cpu_ms(gateway)) - began[name]) / pairs
        for name, gateway in served.items()
    }
    client.close()
    differences = [a - b for a, b in zip(times[WITH], times[WITHOUT], strict=True)]
    return {
        "with_ms": statistics.median(times[WITH]),
        "without_ms": statistics.median(times[WITHOUT]),
        "added_ms": statistics.median(differences),
        "added_cpu_ms": cpu[WITH] - cpu[WITHOUT],
    }


def _line(found: dict[str, float]) -> str:
    return (
        f"{found['with_ms']:.3f} ms with, {found['without_ms']:.3f} without, "
        f"added {found['added_ms']:.3f} ms, CPU {found['added_cpu_ms']:.3f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
