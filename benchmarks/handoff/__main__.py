"""Handoff of SmolLM2's KV pages between two processes of one host, in every way there is.

    python -m benchmarks.handoff [--quick]

The ways, interleaved, each time with other pages of pools of 378 MB that are warm (every page
written and mapped before) but larger than the caches:

memcpy        one memmove of as many bytes from pool to pool, in the decode worker
shm           ours on one host: the prefill worker offers batches, the decode worker copies them
tcp           ours over loopback TCP, as between hosts: encrypted
mooncake_tcp  Mooncake's transfer engine over TCP with the batches that SGLang gives it
nixl          NIXL, whose UCX picks shared memory on one host, with the blocks SGLang gives it

Ours is timed from the moment the prefill worker offers the first of pages that are asked for
already until the decode worker may use the last: digests on both sides, messages and wake-ups
included. The others are timed from the call with the first block to the return of the last; the
message by which SGLang then tells the decode worker is left out. "shm_without_digest" is ours, but
neither side looks at the pages: it shows what the digest costs, and is no option. Nor is
"tcp_without_key" in a cluster: nothing is encrypted there, as in the others.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Final

from benchmarks.handoff import peers
from benchmarks.handoff.cases import CASES, Case
from benchmarks.handoff.prefill_worker import PrefillWorker, workers
from benchmarks.report import count, parser, run, save, spread

_PACKAGES: Final = {"mooncake_tcp": "mooncake-transfer-engine-non-cuda", "nixl": "nixl"}

Times = dict[str, list[float]]  # seconds by way


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    options = parser("handoff", __doc__, "fewer repeats, in under 50 seconds")
    options.add_argument("--repeats", type=count, help="of each case (default 21, with --quick 7)")
    arguments = options.parse_args(argv)
    return run("handoff", lambda: _measure(arguments))


def _measure(arguments: argparse.Namespace) -> int:
    repeats = arguments.repeats or (7 if arguments.quick else 21)
    missing = peers.missing()
    for name, reason in missing.items():
        print(f"no comparison with {name}: {reason}", file=sys.stderr)
    names = [name for name in peers.KINDS if name not in missing]
    slow_s, limit_s = (0.2, 30.0) if arguments.quick else (2.0, math.inf)
    with workers(names) as worker:
        times = measure(worker, repeats, slow_s=slow_s, limit_s=limit_s)
    cases = {str(case): figures(case, seconds) for case, seconds in times.items()}
    for name, case in cases.items():
        print(f"{name} ({case['megabytes']:.1f} MB)")
        for way, ms in case["milliseconds"].items():
            print(f"    {way:18} {ms['median']:9.2f} ms  ({ms['min']:.2f}..{ms['max']:.2f})")
    for line in misses(cases):
        print(line)
    compared = {name: missing.get(name) or version(package) for name, package in _PACKAGES.items()}
    result = {"peers": compared, "cases": cases}
    save("handoff", result, quick=arguments.quick, publish=arguments.publish)
    print("The last line gives the worst case of each:")
    shm = max(case["shm_over_memcpy"] for case in cases.values())
    if "mooncake_tcp" in missing:
        print(f"handoff: shm {shm:.1f}x memcpy, mooncake_tcp is not installed")
    else:
        faster = min(case["mooncake_over_shm"] for case in cases.values())
        print(f"handoff: shm {shm:.1f}x memcpy, {faster:.1f}x faster than mooncake_tcp")
    return 0


def measure(
    worker: PrefillWorker, repeats: int, *, slow_s: float, limit_s: float
) -> dict[Case, Times]:
    """Times of every case and way, in rounds over all of them; no round starts after `limit_s`.

    The first round also compares the bytes. It does not count, unless a peer takes longer than
    `slow_s`: then it is the only one.
    """
    started = time.monotonic()
    times: dict[Case, Times] = {case: defaultdict(list) for case in CASES}
    slow = set()
    for case in CASES:
        for way in worker.ways:
            seconds = worker.check(way, case)
            if way in peers.KINDS and seconds > slow_s:
                slow.add((case, way))
                times[case][way].append(seconds)
    for number in range(repeats):
        if number > 0 and time.monotonic() - started > limit_s:
            break
        for case in CASES:
            for way in worker.ways:
                if (case, way) not in slow:
                    times[case][way].append(worker.move(way, case))
    return times


def figures(case: Case, times: Times) -> dict[str, Any]:
    """What is saved of a case: times with their spread, and ratios of medians."""
    median = {way: statistics.median(seconds) for way, seconds in times.items()}
    result = {
        "megabytes": case.size / 1e6,
        "milliseconds": {way: spread([1e3 * value for value in times[way]]) for way in times},
        "shm_over_memcpy": median["shm"] / median["memcpy"],
        "shm_over_shm_without_digest": median["shm"] / median["shm_without_digest"],
        "tcp_over_tcp_without_key": median["tcp"] / median["tcp_without_key"],
    }
    if "mooncake_tcp" in median:
        result["mooncake_over_shm"] = median["mooncake_tcp"] / median["shm"]
        result["tcp_without_key_over_mooncake"] = median["tcp_without_key"] / median["mooncake_tcp"]
    return result


def misses(cases: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each bar that a case does not reach."""
    lines = []
    for name, case in cases.items():
        if (slower := case["shm_over_memcpy"]) > 2:
            lines.append(f"{name}: shm takes {slower:.2f}x memcpy, more than 2x")
        if (faster := case.get("mooncake_over_shm", 4)) < 4:
            lines.append(f"{name}: shm is {faster:.1f}x faster than mooncake_tcp, less than 4x")
        if (slower := case.get("tcp_without_key_over_mooncake", 1)) > 1:
            lines.append(f"{name}: tcp_without_key takes {slower:.2f}x mooncake_tcp, more than 1x")
    return [f"bar missed: {line}" for line in lines]


if __name__ == "__main__":
    sys.exit(main())
