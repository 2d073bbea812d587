"""Whether a worker that wants to join fits the cluster (invariant I5, at run time).

A worker tells what it is at `/server_info`: its role and addresses are SGLang's, and under
`ps_sglang` stand the items that all workers of a cluster have in common (`common`) and the base
that its checkpoint's manifest names (`trained_on`). Two that differ in any item would exchange KV
that means something else to each of them, and SGLang's own handshake compares only two.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
import msgspec

from ps_sglang.feed.messages import PUBLISHER
from ps_sglang.gateway.config import DecodeWorker, PrefillWorker, Worker
from ps_sglang.gateway.errors import BadRequest, GatewayBusy, GatewayError, is_own

ANSWER_SECONDS = 30.0  # the engine is asked too, and may be in the middle of a long prompt
_WILDCARDS = frozenset(("*", "0.0.0.0", "::", "[::]"))


class Facts(msgspec.Struct, frozen=True):
    """What a worker says of itself; `problem` says why it cannot."""

    common: dict[str, Any] = {}
    trained_on: str | None = None
    problem: str | None = None


class Report(msgspec.Struct, frozen=True):
    """The part of a worker's `/server_info` that matters here. Sizes are in tokens."""

    disaggregation_mode: Literal["null", "prefill", "decode"]
    served_model_name: str
    disaggregation_bootstrap_port: int
    max_total_num_tokens: int
    kv_events_config: str | None = None
    ps_sglang: Facts | None = None


class Joining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /workers. All but `url` can be learnt from the worker.

    `decoder` is the name that clients ask for; a decode worker's own served model name otherwise.
    `allow_unverified` admits a decoder without a manifest.
    """

    url: str
    name: str | None = None
    decoder: str | None = None
    bootstrap_host: str | None = None
    allow_unverified: bool = False


async def ask(session: aiohttp.ClientSession, url: str) -> Report:
    """What the worker at `url` says of itself; raises GatewayError if it says nothing useful."""
    deadline = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    try:
        async with session.get(url + "/server_info", timeout=deadline) as response:
            content = await response.read()
            if response.status != 200:
                raise _no_worker(url, f"it answers /server_info with status {response.status}")
        return msgspec.json.decode(content, type=Report)
    except TimeoutError as error:
        raise _no_worker(url, f"no answer within {ANSWER_SECONDS:g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        if is_own(error):
            raise GatewayBusy(str(error)) from error
        raise _no_worker(url, str(error) or type(error).__name__) from error
    except msgspec.DecodeError as error:
        raise _no_worker(url, f"its /server_info is not SGLang's: {error}") from error


async def reference(session: aiohttp.ClientSession, workers: Iterable[Worker]) -> Mapping[str, Any]:
    """The items that the cluster's workers have in common, from the first that tells them."""
    reports = [asyncio.create_task(ask(session, worker.url)) for worker in workers]
    try:
        for report in asyncio.as_completed(reports):
            try:
                facts = (await report).ps_sglang
            except GatewayError:
                continue
            if facts is not None and facts.common:
                return facts.common
    finally:
        for task in reports:
            task.cancel()
        await asyncio.gather(*reports, return_exceptions=True)
    raise GatewayError(
        "No worker of the cluster tells what a new one must have in common with it; try again "
        "when one answers.",
        status=503,
        code="no_worker",
    )


def misfits(
    report: Report, common: Mapping[str, Any], capacity: int, *, allow_unverified: bool
) -> list[str]:
    """Everything in which a worker does not fit, one line each.

    `common` is `reference`'s answer, `capacity` the longest prompt plus answer that the cluster
    takes.
    """
    facts = report.ps_sglang
    if facts is None:
        return ["it runs without the ps_sglang plugin: start it with PS_SGLANG_ENABLE=1"]
    if facts.problem is not None:
        return [f"it cannot tell what it serves: {facts.problem}"]
    if report.disaggregation_mode == "null":
        return ["it is a plain server: start it with --disaggregation-mode prefill or decode"]
    found = [
        f"{item}: cluster {common.get(item)}, worker {facts.common.get(item)}"
        for item in {**common, **facts.common}
        if common.get(item) != facts.common.get(item)
    ]
    base = common.get("base fingerprint")
    if report.disaggregation_mode == "decode" and facts.trained_on != base:
        if facts.trained_on is not None:
            found.append(f"trained on: cluster {base}, worker {facts.trained_on}")
        elif not allow_unverified:
            found.append(
                "it has no prefillshare.json: train the decoder with ps-sglang, or send "
                "`allow_unverified`"
            )
    if report.max_total_num_tokens < capacity:
        found.append(
            f"KV pool: the cluster takes requests of {capacity} tokens, the worker holds "
            f"{report.max_total_num_tokens}"
        )
    return found


def worker(joining: Joining, report: Report) -> Worker:
    """The worker as the gateway will know it."""
    url = joining.url.rstrip("/")
    address = urlsplit(url)
    host = address.hostname or ""
    feed, control = _feed(report, host)
    if report.disaggregation_mode == "prefill":
        return PrefillWorker(
            joining.name or f"prefill-{host}:{address.port}",
            url,
            joining.bootstrap_host or host,
            report.disaggregation_bootstrap_port,
            feed,
            control,
        )
    decoder = joining.decoder or report.served_model_name
    name = joining.name or f"decode-{decoder}-{host}:{address.port}"
    return DecodeWorker(name, url, decoder, feed, control)


def check_request(content: bytes) -> Joining:
    """The body of POST /workers; raises BadRequest."""
    try:
        joining = msgspec.json.decode(content, type=Joining)
    except msgspec.DecodeError as error:
        raise BadRequest(f"The body is not what adds a worker: {error}.") from error
    try:
        address = urlsplit(joining.url)
        usable = address.scheme in ("http", "https") and address.hostname and address.port
    except ValueError:
        usable = False
    if not usable:
        raise BadRequest(
            f"`url` must be a worker's address like http://10.0.0.2:30000, not {joining.url!r}.",
            param="url",
        )
    for field in ("name", "decoder"):
        value = getattr(joining, field)
        if value is not None and (not value or "/" in value):
            raise BadRequest(
                f"`{field}` must be a text without '/', as URLs name it, not {value!r}.",
                param=field,
            )
    return joining


def _feed(report: Report, host: str) -> tuple[str | None, str | None]:
    """Where the worker publishes its events and takes control requests, as seen from here."""
    try:
        events = msgspec.json.decode(report.kv_events_config or "{}")
    except msgspec.DecodeError:
        return None, None
    if not isinstance(events, dict) or events.get("publisher") != PUBLISHER:
        return None, None
    return _reachable(events.get("endpoint"), host), _reachable(events.get("replay_endpoint"), host)


def _reachable(endpoint: str | None, host: str) -> str | None:
    """`tcp://*:5557` of a worker on `host` is `tcp://host:5557`."""
    if endpoint is None:
        return None
    scheme, _, rest = endpoint.partition("://")
    bound, _, port = rest.rpartition(":")
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port}" if bound in _WILDCARDS else endpoint


def _no_worker(url: str, problem: str) -> GatewayError:
    return GatewayError(
        f"There is no SGLang worker at {url}: {problem}.", status=400, code="worker_unreachable"
    )
