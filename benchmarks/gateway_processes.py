"""What one gateway process carries, and what two do: decisions, streamed tokens, cached prompts.

    python -m benchmarks.gateway_processes [--quick]

Decision: how long the router takes for a pair of 16 prefill workers and 64 replicas of a decoder.

Streams: 192 clients for each process read answers of one token an event, which a stand-in engine
gives at an even pace. Engines and clients need cores as well, so the machine is not filled: each
gateway process is charged with the CPU time that its kernel counts. A chunk's is the difference
between long and short answers. What N processes carry, each with a core of its own, is told by the
busiest: the system gives connections to processes by chance, and to one more than to another.
`times_one` compares the tokens of all for each second of the busiest's CPU with those of one alone.

Hits: the agent trace of `benchmarks.gateway` before 2 prefill workers, whose prompts must be found
by whichever process is asked.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop

from benchmarks.gateway import agents, systems, trace
from benchmarks.gateway.client import Client
from benchmarks.gateway.compared import engine
from benchmarks.gateway.latency import Through
from benchmarks.gateway.messages import Pace
from benchmarks.gateway.vocabulary import write_tokenizer
from benchmarks.report import parser, run, save, spread
from ps_sglang.gateway.config import DecodeWorker, PrefillWorker
from ps_sglang.gateway.index.cache_index import CacheIndex
from ps_sglang.gateway.index.prompt import Prompt
from ps_sglang.gateway.index.prompts import Prompts
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.routing.router import Router

PREFILL_WORKERS: Final = 16
REPLICAS: Final = 64
STREAMS: Final = 192
SHORT: Final = 8
LONG: Final = 208
PROCESSES: Final = (1, 2)
_PACE: Final = Pace(decode_token=0.02)
_DECODER: Final = "decoder"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status is 0 whatever the figures are."""
    options = parser("gateway_processes", __doc__, "one round, a short trace").parse_args(argv)
    return run("gateway_processes", lambda: _measure(options.quick, options.publish))


def _measure(quick: bool, publish: bool) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder / "tokenizer")
        figures: dict[str, Any] = {
            "decision_us": {str(hosts): decision(hosts) for hosts in (1, PREFILL_WORKERS)}
        }
        for hosts, found in figures["decision_us"].items():
            print(f"decision, {hosts} hosts: median {found['median']:.0f} us", flush=True)
        figures["streams"] = streams(folder, 1 if quick else 5)
        figures["hits"] = hits(folder, quick)
    save("gateway_processes", figures, quick=quick, publish=publish)
    two, both = figures["streams"]["2"], figures["hits"]
    print(
        f"gateway_processes: {two['times_one']['median']:.2f} x one process's streams with two, "
        f"{two['chunk_us']['median']:.1f} us a chunk "
        f"({figures['streams']['1']['chunk_us']['median']:.1f} with one); hits "
        f"{both['2']['median']:.1f}% ({both['1']['median']:.1f}% with one); a decision "
        f"{figures['decision_us']['1']['median']:.0f} us"
    )
    return 0


def decision(hosts: int, count: int = 500) -> dict[str, float]:
    """Microseconds of a choice, prompts and workers at rest."""
    index = CacheIndex(Prompts(problem="no tokenizer"))
    prefill = (
        PrefillWorker(f"p{number}", f"http://host{number % hosts}:1", "h", number)
        for number in range(PREFILL_WORKERS)
    )
    decode = (
        DecodeWorker(f"d{number}", f"http://host{number % hosts}:2", _DECODER)
        for number in range(REPLICAS)
    )
    pool = WorkerPool([*prefill, *decode])
    for worker_state in pool:
        index.add(worker_state.worker)
    router, served = Router(pool, index), pool.served(_DECODER)
    taken = []
    for number in range(count):
        prompt = Prompt(f"{number % 100} ".encode() * 2000)
        assert prompt.blocks, "its hashes are no part of the choice"
        began = time.perf_counter()
        route = router.choose(prompt, served)
        taken.append((time.perf_counter() - began) * 1e6)
        route.handed_over()
        route.release()
    cuts = statistics.quantiles(taken, n=100)
    return {"median": statistics.median(taken), "p99": cuts[98]}


def streams(folder: Path, rounds: int) -> dict[str, Any]:
    """What streamed chunks cost each number of processes."""
    configs = [
        engine(folder, "prefill-0"),
        engine(folder, _DECODER, decoder=_DECODER, pace=_PACE),
    ]
    taken: dict[int, list[dict[str, float]]] = {count: [] for count in PROCESSES}
    with systems.fleet(folder / "tokenizer", configs) as engines:
        for number in range(rounds):
            for count in PROCESSES:
                systems.forget(engines)
                with systems.gateway(engines, folder, processes=count) as served:
                    found = uvloop.run(_streamed(served, STREAMS * count))
                taken[count].append(found)
                alone = taken[1][-1]["tokens_per_busiest_second"]
                found["times_one"] = found["tokens_per_busiest_second"] / alone
                print(f"round {number + 1}, {count} processes: {_line(found)}", flush=True)
    return {
        str(count): {name: spread([one[name] for one in of]) for name in of[0]}
        for count, of in taken.items()
    }


async def _streamed(served: systems.Served, clients: int) -> dict[str, float]:
    client, target = Client(), Through(served)
    await _read(client, target, clients, SHORT)  # connections and code paths come into being
    cpu = {}
    for tokens in (SHORT, LONG):
        before, began = systems.cpu_ms(served), time.perf_counter()
        await _read(client, target, clients, tokens)
        seconds = time.perf_counter() - began
        cpu[tokens] = [
            after - one for after, one in zip(systems.cpu_ms(served), before, strict=True)
        ]
    client.close()
    chunks = clients * (LONG - SHORT)
    return {
        "chunk_us": 1000 * (sum(cpu[LONG]) - sum(cpu[SHORT])) / chunks,
        "tokens_per_busiest_second": clients * LONG / max(cpu[LONG]) * 1000,
        "busiest_share": max(cpu[LONG]) / sum(cpu[LONG]),
        "tokens_per_second": clients * LONG / seconds,
    }


async def _read(client: Client, target: Through, clients: int, tokens: int) -> None:
    async def one(number: int) -> None:
        body = {
            "model": _DECODER,
            "messages": [{"role": "user", "content": f"number {number}"}],
            "max_tokens": tokens,
            "stream": True,
        }
        await target.post(client, _DECODER, msgspec.json.encode(body))

    await asyncio.gather(*(one(number) for number in range(clients)))


def hits(folder: Path, quick: bool) -> dict[str, Any]:
    """The part of the trace's prompts, in percent, that no prefill worker computed."""
    workers = 2
    shape = trace.Shape(slots=8, sessions=12, turns_median=8) if quick else agents.shape(workers)
    configs = [
        *(engine(folder, f"prefill-{number}", pace=agents.PACE) for number in range(workers)),
        *(
            engine(folder, name, decoder=name, pace=agents.PACE, stream_tokens=4)
            for name in trace.ROLES
        ),
    ]
    taken: dict[int, list[float]] = {count: [] for count in PROCESSES}
    with systems.fleet(folder / "tokenizer", configs) as engines:
        for seed in agents.SEEDS[:1] if quick else agents.SEEDS:
            for count in PROCESSES:
                systems.forget(engines, agents.pool_tokens(workers, agents.POOL))
                with systems.gateway(engines, folder, processes=count) as served:
                    played = uvloop.run(trace.run(shape, seed, Through(served)))
                found = trace.judged(played, systems.totals(engines.prefill))
                taken[count].append(found["hit_percent"])
                print(
                    f"seed {seed}, {count} processes: hit {found['hit_percent']:.1f}%, "
                    f"imbalance {found['imbalance']:.2f}, {found['requests']} requests",
                    flush=True,
                )
    return {str(count): spread(of) for count, of in taken.items()}


def _line(found: dict[str, float]) -> str:
    return (
        f"{found['chunk_us']:.1f} us a chunk, {found['tokens_per_second']:.0f} tokens/s as paced, "
        f"{found['tokens_per_busiest_second']:.0f} for a second of the busiest's CPU, which has "
        f"{100 * found['busiest_share']:.0f}%: {found['times_one']:.2f} x one"
    )


if __name__ == "__main__":
    sys.exit(main())
