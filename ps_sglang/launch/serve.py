"""Serve what is planned until Ctrl-C, and say what becomes of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ps_sglang.errors import LaunchError, PsSglangError, ServingEndedError
from ps_sglang.gateway.config import is_loopback
from ps_sglang.gateway_http import KEY_VARIABLE
from ps_sglang.progress import progress

if TYPE_CHECKING:
    from ps_sglang.launch.cluster import Cluster
    from ps_sglang.launch.prepare import Plan

STATUSES = (
    "Exit status: 0 stopped, 1 what was started failed, 2 refused before anything started,\n"
    "3 what served has died, more often than it is restarted."
)


def serve(make_plan: Callable[[], Plan]) -> int:
    """Bring up what `make_plan` plans, and supervise it; returns one of STATUSES."""
    try:
        plan = make_plan()
        if plan.spec.no_keys and not is_loopback(plan.spec.host):
            progress(f"no keys: whoever reaches {plan.spec.host} may use this cluster")
        from ps_sglang.launch.cluster import Cluster

        _interrupt_on_signals()
        with Cluster.start_plan(plan, progress) as cluster:
            progress(ready_line(cluster))
            cluster.wait()
    except KeyboardInterrupt:
        progress("stopped")
    except ServingEndedError as error:
        progress(f"error: {error}")
        return 3
    except LaunchError as error:
        progress(f"error: {error}")
        return 1
    except PsSglangError as error:
        progress(f"error: {error}")
        return 2
    return 0


def ready_line(cluster: Cluster) -> str:
    """What a person needs to use the cluster, the request to copy included."""
    decoders = list(dict.fromkeys(name for worker in cluster.workers for name in worker.decoders))
    ready = "joined" if cluster.plan.spec.join else "ready"
    line = (
        f"{ready} {cluster.url} after {cluster.ready_s:.1f} s, "
        f"{cluster.memory_bytes / 1e9:.1f} GB; decoders: {', '.join(decoders) or 'none'}; "
        f"logs: {cluster.plan.log_dir}"
    )
    if cluster.admin_url != cluster.url:
        line += f"; for admins: {cluster.admin_url}"
    if not decoders:
        return line
    needs_key = cluster.plan.spec.api_keys is not None
    key = f"-H 'Authorization: Bearer '${KEY_VARIABLE} " if needs_key else ""
    body = json.dumps({"model": decoders[0], "messages": [{"role": "user", "content": "Hello!"}]})
    return (
        f"{line}\n"
        f"try: curl {cluster.url}/v1/chat/completions {key}-H 'Content-Type: application/json' "
        f"-d '{body}'"
    )


def _interrupt_on_signals() -> None:
    """The first Ctrl-C or SIGTERM begins the stop, which takes seconds; more change nothing."""

    def interrupt(*_: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        progress("stopping")
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
