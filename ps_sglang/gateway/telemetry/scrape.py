"""Workers' metrics, gathered under one roof with a `worker` label."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

import aiohttp
from prometheus_client import generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from ps_sglang.gateway.config import Worker
from ps_sglang.gateway.errors import OtherProcess, require_process
from ps_sglang.gateway.routing.worker_state import AnyWorkerState
from ps_sglang.worker_info import HEADER

SCRAPE_SECONDS = 2.0

log = logging.getLogger("ps_sglang.gateway")


async def scrape_workers(
    http: aiohttp.ClientSession, worker_states: Sequence[AnyWorkerState]
) -> bytes:
    """The metrics of all workers in Prometheus' text format.

    Workers are asked at the same time; one that does not answer in SCRAPE_SECONDS only shows as
    `ps_sglang_worker_up` 0.
    """
    texts = await asyncio.gather(*(_scrape(http, worker_state) for worker_state in worker_states))
    workers = [worker_state.worker for worker_state in worker_states]
    # In a thread: parsing takes tens of milliseconds, and streams must not wait for it.
    return await asyncio.to_thread(_render, list(zip(workers, texts, strict=True)))


async def _scrape(http: aiohttp.ClientSession, worker_state: AnyWorkerState) -> str | None:
    worker, incarnation = worker_state.worker, worker_state.incarnation
    deadline = aiohttp.ClientTimeout(total=SCRAPE_SECONDS)
    try:
        async with http.get(
            worker.url + "/metrics", headers=worker_state.headers, timeout=deadline
        ) as response:
            require_process(worker, incarnation, response.headers.get(HEADER))
            response.raise_for_status()
            return await response.text()
    except (
        aiohttp.ClientError, OSError, TimeoutError, UnicodeDecodeError, OtherProcess
    ) as error:  # fmt: skip
        log.debug("metrics of %s: %r", worker.title, error)
        return None


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _render(scraped: Sequence[tuple[Worker, str | None]]) -> bytes:
    up = GaugeMetricFamily(
        "ps_sglang_worker_up", "Whether the worker answers.", labels=("worker", "role", "decoder")
    )
    merged: dict[str, Metric] = {}
    for worker, text in scraped:
        families = None if text is None else _parse(worker, text)
        up.add_metric(_identity(worker), float(families is not None))
        for family in families or ():
            _add(merged, family, {"worker": worker.name})
    return generate_latest(_Families([up, *merged.values()]))


def _parse(worker: Worker, text: str) -> list[Metric] | None:
    try:
        return list(text_string_to_metric_families(text))
    except ValueError as error:
        log.warning("%s has metrics that cannot be read: %s", worker.title, error)
        return None


def labelled(processes: Mapping[int, bytes]) -> bytes:
    """Metrics of gateway processes, in Prometheus' text format, with a label `process` each."""
    merged: dict[str, Metric] = {}
    for process, text in sorted(processes.items()):
        for family in text_string_to_metric_families(text.decode()):
            _add(merged, family, {"process": str(process)})
    return generate_latest(_Families(merged.values()))


def _add(merged: dict[str, Metric], family: Metric, labels: Mapping[str, str]) -> None:
    target = merged.setdefault(
        family.name, Metric(family.name, family.documentation, family.type, family.unit)
    )
    target.samples.extend(
        sample._replace(labels={**sample.labels, **labels}) for sample in family.samples
    )


def _identity(worker: Worker) -> tuple[str, str, str]:
    return worker.name, worker.role, worker.decoder or ""
