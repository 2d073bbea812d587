"""The table of faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from benchmarks.faults.kinds.clients import Gone, SameIds, SlowReaders
from benchmarks.faults.kinds.disk import FullDisk, no_small_disk
from benchmarks.faults.kinds.floods import (
    AtARate,
    AtOnce,
    Connections,
    no_files_for_connections,
)
from benchmarks.faults.kinds.garbage import Garbage
from benchmarks.faults.kinds.identity import OtherModel, no_other_model
from benchmarks.faults.kinds.idle import Idle
from benchmarks.faults.kinds.links import CutLink, SlowLink
from benchmarks.faults.kinds.pools import FullPools, Retraction
from benchmarks.faults.kinds.processes import (
    DECODE,
    PREFILL,
    KillGateway,
    KillLaunch,
    KillWorker,
    Stop,
)
from benchmarks.faults.network import no_second_host
from benchmarks.faults.scene import Fault
from ps_sglang.launch.processes import GATEWAY

FLOOD_S: Final = 600.0
IDLE_S: Final = 3600.0
_COMPARED_S: Final = 60.0
_QUICK_FLOOD_S: Final = 8.0
_QUICK_IDLE_S: Final = 20.0
_SLOW_S: Final = 20.0


@dataclass(frozen=True)
class Row:
    """One fault: what it is in words, and how it is made, for a quick run or a whole one.

    `missing` says why it cannot be had on this machine, or with models of a kind, None if it can. A
    whole run has it so many `times`, a quick one once if it is `quick`. The soak leaves those out
    that are not `soaked`. Some need a cluster on `two_hosts`.
    """

    name: str
    what: str
    make: Callable[[bool], Fault]
    missing: Callable[[str], str | None] = lambda _: None
    times: int = 20
    quick: bool = True
    soaked: bool = True
    two_hosts: bool = False


ROWS: Final = (
    Row(
        "kill-prefill",
        "kill -9 of a prefill worker, started again on its port with an empty tree",
        lambda _: KillWorker(PREFILL),
    ),
    Row(
        "kill-decode",
        "kill -9 of a decode worker, started again on its port with an empty tree",
        lambda _: KillWorker(DECODE),
    ),
    Row("kill-gateway", "kill -9 of the gateway", lambda _: KillGateway()),
    Row(
        "kill-fork-server",
        "kill -9 of the fork server, started again as by a service manager",
        lambda _: KillLaunch(fork_server=True),
        soaked=False,
    ),
    Row(
        "kill-launcher",
        "kill -9 of the launcher, started again as by a service manager",
        lambda _: KillLaunch(fork_server=False),
        soaked=False,
    ),
    Row(
        "kill-scheduler",
        "kill -9 of a decode worker's scheduler",
        lambda _: KillWorker(DECODE, "scheduler"),
    ),
    Row("stop-prefill-5", "SIGSTOP of a prefill worker, 5 s", lambda _: Stop(PREFILL, 5)),
    Row("stop-decode-5", "SIGSTOP of a decode worker, 5 s", lambda _: Stop(DECODE, 5)),
    Row("stop-gateway-5", "SIGSTOP of the gateway, 5 s", lambda _: Stop(GATEWAY, 5)),
    Row("stop-prefill-20", "SIGSTOP of a prefill worker, 20 s", lambda _: Stop(PREFILL, 20)),
    Row("stop-decode-20", "SIGSTOP of a decode worker, 20 s", lambda _: Stop(DECODE, 20)),
    Row(
        "stop-gateway-20",
        "SIGSTOP of the gateway, 20 s",
        lambda _: Stop(GATEWAY, 20),
        quick=False,
    ),
    Row(
        "stop-prefill-60",
        "SIGSTOP of a prefill worker, 60 s",
        lambda _: Stop(PREFILL, 60),
        quick=False,
    ),
    Row(
        "stop-decode-60",
        "SIGSTOP of a decode worker, 60 s",
        lambda _: Stop(DECODE, 60),
        quick=False,
    ),
    Row(
        "stop-gateway-60",
        "SIGSTOP of the gateway, 60 s",
        lambda _: Stop(GATEWAY, 60),
        quick=False,
    ),
    Row(
        "stop-decode",
        "SIGSTOP of a decode worker, for good",
        lambda _: Stop(DECODE, None),
        quick=False,
    ),
    Row(
        "other-model",
        "kill -9 of a decode worker, and another model on its port",
        lambda _: OtherModel(),
        no_other_model,
        quick=False,
    ),
    Row(
        "cut-link-5",
        "the link between two hosts cut, 5 s",
        lambda _: CutLink(5),
        lambda _: no_second_host(),
        quick=False,
        two_hosts=True,
    ),
    Row(
        "cut-link-60",
        "the link between two hosts cut, 60 s",
        lambda _: CutLink(60),
        lambda _: no_second_host(),
        quick=False,
        two_hosts=True,
    ),
    Row(
        "slow-link",
        "the link between two hosts slow, 20 s",
        lambda _: SlowLink(_SLOW_S),
        lambda _: no_second_host(),
        quick=False,
        two_hosts=True,
    ),
    Row("clients-gone", "200 clients hang up at every stage", lambda _: Gone()),
    Row("slow-readers", "12 streams that nobody reads for 10 s", lambda _: SlowReaders()),
    Row("same-ids", "12 requests at once with one id", lambda _: SameIds()),
    Row("full-pools", "24 long prompts, several times the pools", lambda _: FullPools()),
    Row("retraction", "48 answers that outgrow the pools, 16 more hang up", lambda _: Retraction()),
    Row("garbage", "garbage to every port that answers", lambda _: Garbage()),
    Row("full-disk", "no space left for logs", lambda _: FullDisk(), lambda _: no_small_disk()),
    Row("flood-at-once", "1,000 requests at once", lambda _: AtOnce()),
    Row(
        "flood-connections",
        "10,000 idle connections",
        lambda _: Connections(),
        lambda _: no_files_for_connections(),
        soaked=False,
    ),
    Row(
        "flood-rate",
        "100 requests a second for 10 minutes; with --quick for 8 s",
        lambda quick: AtARate(_QUICK_FLOOD_S, 0) if quick else AtARate(FLOOD_S, _COMPARED_S),
        times=1,
        soaked=False,
    ),
    Row(
        "idle-hour",
        "nobody asks for an hour; with --quick for 20 s",
        lambda quick: Idle(_QUICK_IDLE_S if quick else IDLE_S),
        times=1,
        quick=False,
    ),
)
NAMES: Final = tuple(row.name for row in ROWS)
