"""What a system has done and cost, by its workers' own metrics and the kernel's accounts."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

import psutil

from benchmarks.sessions.running import Running, ask_worker
from ps_sglang.launch import procfs

_SAMPLE: Final = re.compile(r"^([\w:]+)(?:\{(.*)\})? (\S+)$")
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')
# Counter -> what it is called here: (metric, labels that it must have).
_COUNTERS: Final = {
    "prefilled_tokens": ("sglang:realtime_tokens_total", {"mode": "prefill_compute"}),
    "evicted_tokens": ("sglang:evicted_tokens_total", {}),
    "moved_bytes": ("ps_sglang_transfer_bytes_total", {}),
}
_HELD: Final = ("sglang:kv_used_tokens", "sglang:kv_evictable_tokens")
_CAPACITY: Final = "sglang:max_total_num_tokens"


@dataclass(frozen=True)
class Counts:
    """Sums over all workers since they started; `cpu_s` by role."""

    counters: Counter[str]
    cpu_s: dict[str, float]

    def since(self, before: Counts) -> Counts:
        """What came after `before`."""
        return Counts(
            Counter({name: n - before.counters[name] for name, n in self.counters.items()}),
            {role: seconds - before.cpu_s[role] for role, seconds in self.cpu_s.items()},
        )


def count(running: Running) -> Counts:
    """Ask all workers and the kernel."""
    counters = Counter(dict.fromkeys(_COUNTERS, 0))
    for url in running.workers:
        text = ask_worker(f"{url}/metrics")
        for name, (metric, labels) in _COUNTERS.items():
            counters[name] += round(total(text, metric, labels))
    cpu_s = dict.fromkeys((process.role for process in running.processes), 0.0)
    for process in running.processes:
        cpu_s[process.role] += sum(map(_cpu_seconds, procfs.session_members(process.pid)))
    return Counts(counters, cpu_s)


@dataclass(frozen=True)
class Pool:
    """Tokens in the KV pools of a role's workers, used or kept for later, and their room."""

    held: int
    capacity: int


def pools(running: Running) -> dict[str, Pool]:
    """As they are now, by role."""
    held: Counter[str] = Counter()
    capacity: Counter[str] = Counter()
    for process in running.processes:
        if process.url is not None:
            text = ask_worker(f"{process.url}/metrics")
            held[process.role] += round(sum(total(text, metric, {}) for metric in _HELD))
            capacity[process.role] += round(total(text, _CAPACITY, {}))
    return {role: Pool(held[role], capacity[role]) for role in capacity}


def total(text: str, metric: str, labels: dict[str, str]) -> float:
    """Sum of a metric's samples that have these labels, in Prometheus' text format."""
    value = 0.0
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is None or match[1] != metric:
            continue
        if labels.items() <= dict(_LABEL.findall(match[2] or "")).items():
            value += float(match[3])
    return value


def _cpu_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
