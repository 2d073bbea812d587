"""Whether a worker that wants to join fits the cluster (invariant I5, at run time).

A worker says what it is in its `/server_info`, see `ps_sglang.worker_info`. Two that differ in any
item that a cluster has in common would exchange KV that means something else to each of them, and
SGLang's own handshake compares only two. Once admitted, a worker must stay the same:
one that comes back as another is refused until somebody joins it anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import aiohttp
import msgspec

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.gateway.config import Adapter, DecodeWorker, PrefillWorker, Worker
from ps_sglang.gateway.errors import BadRequest, GatewayBusy, GatewayError, is_own
from ps_sglang.gateway.routing.pool import WorkerPool
from ps_sglang.gateway.workers.probe import NO_PROOF, probe
from ps_sglang.tensor_parallel import handoff_problem
from ps_sglang.worker_info import (
    HEADER,
    WorkerInfo,
    adapter_name,
    is_adapter_name,
    split_adapter_name,
)

ANSWER_SECONDS = 30.0  # the engine is asked too, and may be in the middle of a long prompt
_WRONG_ROLE = {
    False: "it is a plain server: start it with --disaggregation-mode prefill or decode",
    True: "the cluster's workers are aggregated: start it as `ps-sglang launch --one-worker` does",
}
_WILDCARDS = frozenset(("*", "0.0.0.0", "::", "[::]"))


class ServerInfo(msgspec.Struct, frozen=True):
    """The part of a worker's `/server_info` that matters here."""

    ps_sglang: WorkerInfo | None = None


class Joining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /workers. All but `url` can be learnt from the worker.

    `decoder` is the name that clients ask for; a decode worker's own served model name otherwise.
    `allow_unverified` admits a decoder without a manifest. `lease`: the worker leaves
    when it is not renewed for `leases.SECONDS`.
    """

    url: str
    name: str | None = None
    decoder: str | None = None
    bootstrap_host: str | None = None
    allow_unverified: bool = False
    lease: bool = False


async def ask(
    http: aiohttp.ClientSession,
    url: str,
    key: ClusterKey | None,
    seconds: float = ANSWER_SECONDS,
) -> WorkerInfo | None:
    """What the worker at `url` says of itself, None for a server without the plugin.

    With a `key` it must show first that it has it, too. Raises GatewayError if it does not, if
    nobody answers within `seconds`, or something else does.
    """
    headers = {} if key is None else await _proven(http, url, key, seconds)
    deadline = aiohttp.ClientTimeout(total=seconds)
    try:
        async with http.get(url + "/server_info", headers=headers, timeout=deadline) as response:
            content = await response.read()
            if response.status != 200:
                raise _no_worker(url, f"it answers /server_info with status {response.status}")
        facts = msgspec.json.decode(content, type=ServerInfo).ps_sglang
        if key is not None and facts is not None and facts.incarnation != headers[HEADER]:
            raise _no_worker(url, "it says it is another process than the one that has the key")
        return facts
    except TimeoutError as error:
        raise _no_worker(url, f"no answer within {seconds:g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        if is_own(error):
            raise GatewayBusy(str(error)) from error
        raise _no_worker(url, str(error) or type(error).__name__) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise _no_worker(url, f"its /server_info is not this version's: {error}") from error


async def _proven(
    http: aiohttp.ClientSession, url: str, key: ClusterKey, seconds: float
) -> dict[str, str]:
    """The headers of a question to the process at `url`, which has shown that it has the key."""
    found = await probe(http, url, "/ready", seconds, key)
    if found.problem is not None and found.problem.is_own:
        raise GatewayBusy(found.problem.text)
    if found.incarnation is None or not found.is_proven:
        raise _no_worker(url, NO_PROOF if found.problem is None else found.problem.text)
    return {HEADER: found.incarnation, **key.request_headers(found.incarnation)}


def reference(pool: WorkerPool) -> WorkerInfo | None:
    """What a cluster's workers have in common, as its first prefill worker said; None without any.

    Raises GatewayError if there are workers, and none has said so yet.
    """
    if not len(pool):
        return None
    if (facts := next(_told(pool), None)) is not None:
        return facts
    raise GatewayError(
        "No worker of the cluster has reported yet what a new one must have in common with it; try "
        "again when one answers.",
        status=503,
        code="no_worker",
    )


def _told(pool: WorkerPool) -> Iterator[WorkerInfo]:
    """What the workers that belong to the cluster have said of themselves."""
    for worker_state in pool:
        if worker_state.facts is not None and worker_state.refused is None:
            yield worker_state.facts


def incompatibilities(
    facts: WorkerInfo | None,
    reference: WorkerInfo | None,
    capacity: int,
    *,
    is_aggregated: bool,
    allow_unverified: bool,
    fingerprint: str | None = None,
) -> list[str]:
    """Everything in which a worker does not fit, one line each.

    `reference` is what a worker of the cluster said of itself, `capacity` the longest prompt plus
    answer that the cluster takes, and `is_aggregated` whether its workers are. `fingerprint` is the
    base's, for a cluster that has no worker to refer to.
    """
    if facts is None:
        return ["it runs without the ps_sglang plugin: start it with PS_SGLANG_ENABLE=1"]
    if facts.problem is not None:
        return [f"it cannot tell what it serves: {facts.problem}"]
    if (facts.role == "null") is not is_aggregated:
        return [_WRONG_ROLE[is_aggregated]]
    if is_aggregated and facts.adapters is None:
        return ["it takes no adapters: start it as `ps-sglang launch --one-worker` does"]
    problems = [
        f"adapter {name!r}: its name is not like DECODER@VERSION"
        for name in facts.adapters or ()
        if not is_adapter_name(name)
    ]
    if reference is not None:
        problems += _differences(facts, reference, allow_unverified)
    elif fingerprint not in (None, base := facts.common.get("base fingerprint")):
        problems.append(f"base fingerprint: cluster {fingerprint}, worker {base}")
    if facts.capacity < capacity:
        problems.append(
            f"KV pool: the cluster takes requests of {capacity} tokens, the worker holds "
            f"{facts.capacity}"
        )
    return problems


def _differences(facts: WorkerInfo, cluster: WorkerInfo, allow_unverified: bool) -> Iterator[str]:
    for item in {**cluster.common, **facts.common}:
        if cluster.common.get(item) != facts.common.get(item):
            yield f"{item}: cluster {cluster.common.get(item)}, worker {facts.common.get(item)}"
    if _has_base(facts) and _has_base(cluster) and facts.weights != cluster.weights:
        yield f"weights of the base: cluster {cluster.weights}, worker {facts.weights}"
    if facts.adapters is not None:
        return  # each of them was compared with the base by the worker itself
    base = cluster.common.get("base fingerprint")
    if facts.role == "decode" and facts.trained_on != base:
        if facts.trained_on is not None:
            yield f"trained on: cluster {base}, worker {facts.trained_on}"
        elif not allow_unverified:
            yield (
                "it has no prefillshare.json: train the decoder with ps-sglang, or send "
                "`allow_unverified`"
            )


def tp_conflicts(facts: WorkerInfo, pool: WorkerPool) -> Iterator[str]:
    """Each size of workers of the other role between which and this one no page can travel."""
    if facts.role == "null":
        return
    other = "decode" if facts.role == "prefill" else "prefill"
    backend = str(facts.common.get("disaggregation_transfer_backend"))
    for size in sorted({one.tp_size for one in _told(pool) if one.role == other}):
        of_role = {other: size, facts.role: facts.tp_size}
        problem = handoff_problem(backend, of_role["prefill"], of_role["decode"])
        if problem is not None:
            yield f"--tp-size: cluster's {other} workers {size}, worker {facts.tp_size}; {problem}"


def _has_base(facts: WorkerInfo) -> bool:
    """Whether the weights of the worker's model are the base's."""
    return facts.role == "prefill" or facts.adapters is not None


def changes(
    worker: Worker, admitted: WorkerInfo | None, current: WorkerInfo | None, capacity: int
) -> list[str]:
    """Everything in which the process at a worker's address is not that worker, one line each.

    `admitted` is the worker's WorkerInfo when it was admitted, None if it is heard for the
    first time: then it must be what the configuration says. It must have room for `capacity`
    tokens. Whether a decoder has a manifest was asked before it was admitted.
    """
    is_aggregated = isinstance(worker, DecodeWorker) and worker.aggregated
    misfits = incompatibilities(
        current, None, capacity, is_aggregated=is_aggregated, allow_unverified=True
    )
    if current is None or current.problem is not None or (current.role == "null") != is_aggregated:
        return misfits
    if admitted is None:
        admitted = msgspec.structs.replace(current, role="null" if is_aggregated else worker.role)
        if isinstance(worker, PrefillWorker):
            admitted = msgspec.structs.replace(admitted, bootstrap_port=worker.bootstrap_port)
        else:
            admitted = msgspec.structs.replace(admitted, model=worker.decoder)
    takes_adapters = isinstance(worker, DecodeWorker) and worker.adapters is not None
    if takes_adapters and current.adapters is None and not misfits:
        misfits = ["it takes no adapters: start it with --enable-lora"]
    return [*admitted.changes(current), *misfits]


def worker(joining: Joining, facts: WorkerInfo) -> Worker:
    """The worker as the gateway will know it."""
    url = joining.url.rstrip("/")
    address = urlsplit(url)
    host = address.hostname or ""
    events, control = _reachable(facts.events, host), _reachable(facts.events_control, host)
    if facts.bootstrap_port is not None:
        return PrefillWorker(
            joining.name or f"prefill-{host}:{address.port}",
            url,
            joining.bootstrap_host or host,
            facts.bootstrap_port,
            events,
            control,
        )
    decoder = joining.decoder or facts.model
    name = joining.name or f"decode-{decoder}-{host}:{address.port}"
    return DecodeWorker(
        name,
        url,
        decoder,
        events,
        control,
        adapters=None if facts.adapters is None else tuple(_adapters(facts)),
        aggregated=facts.role == "null",
    )


def _adapters(facts: WorkerInfo) -> Iterator[Adapter]:
    """The decoders that a worker has, each in its newest version."""
    newest: dict[str, int] = {}
    for decoder, version in map(split_adapter_name, facts.adapters or ()):
        newest[decoder] = max(version, newest.get(decoder, 0))
    for decoder, version in newest.items():
        path = facts.adapter_folders[adapter_name(decoder, version)]
        yield Adapter(decoder, path, version)


def adapter_conflicts(worker: DecodeWorker, facts: WorkerInfo, pool: WorkerPool) -> Iterator[str]:
    """Each decoder of a worker that wants to join which is another one in the cluster."""
    digests = facts.adapters or {}
    served = pool.decoders.get(worker.decoder)
    if served is not None and served.source is not None:
        yield f"decoder {worker.decoder}: cluster an adapter, worker a whole model"
    for adapter in worker.adapters or ():
        served = pool.decoders.get(adapter.decoder)
        if served is None:
            continue
        if served.source is None:
            yield f"decoder {adapter.decoder}: cluster a whole model, worker an adapter"
        elif served.source.digest not in (None, digests[adapter.name]):
            yield (
                f"weights of decoder {adapter.decoder}: cluster {served.source.digest}, worker "
                f"{digests[adapter.name]}"
            )


def check_request(content: bytes) -> Joining:
    """The body of POST /workers; raises BadRequest."""
    try:
        joining = msgspec.json.decode(content, type=Joining)
    except (msgspec.DecodeError, RecursionError) as error:
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
