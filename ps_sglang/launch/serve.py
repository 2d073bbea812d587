"""Serve what is planned until Ctrl-C, and say what becomes of it."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ps_sglang.errors import LaunchError, PsSglangError, ServingEndedError
from ps_sglang.gateway.config import LogFormat, is_loopback
from ps_sglang.gateway.telemetry.log import line_of
from ps_sglang.gateway_http import KEY_VARIABLE
from ps_sglang.progress import OnProgress, progress

if TYPE_CHECKING:
    from ps_sglang.launch.cluster import Cluster
    from ps_sglang.launch.prepare import Plan

STATUSES = (
    "Exit status: 0 stopped, 1 what was started failed, 2 refused before anything started,\n"
    "3 what served has died, more often than it is restarted."
)


def serve(make_plan: Callable[[], Plan]) -> int:
    """Bring up what `make_plan` plans, and supervise it; returns one of STATUSES."""
    say = partial(_say, LogFormat.TEXT)
    try:
        plan = make_plan()
        say = partial(_say, plan.spec.log_format)
        if plan.spec.dry_run:
            from ps_sglang.launch.dry_run import table

            print(table(plan))
            return 0
        if plan.spec.no_keys and not is_loopback(plan.spec.host):
            say(f"no keys: whoever reaches {plan.spec.host} may use this cluster")
        from ps_sglang.launch.cluster import Cluster

        _interrupt_on_signals(say)
        with Cluster.start_plan(plan, say) as cluster:
            say(ready_line(cluster))
            cluster.wait()
    except KeyboardInterrupt:
        say("stopped")
    except PsSglangError as error:
        say(f"error: {error}", level="ERROR")
        return _status(error)
    return 0


def _status(error: PsSglangError) -> int:
    if isinstance(error, ServingEndedError):
        return 3
    return 1 if isinstance(error, LaunchError) else 2


def _say(log_format: LogFormat, line: str, *, level: str = "INFO") -> None:
    if log_format is LogFormat.TEXT:
        progress(line)
    else:
        sys.stderr.write(line_of(log_format, line, level=level, logger="ps_sglang.launch") + "\n")
        sys.stderr.flush()


def ready_line(cluster: Cluster) -> str:
    """What a person needs to use the cluster, the request to copy included."""
    decoders = list(dict.fromkeys(name for worker in cluster.workers for name in worker.decoders))
    ready = "joined" if cluster.plan.spec.join else "ready"
    line = (
        f"{ready} {cluster.url} after {cluster.ready_s:.1f} s, "
        f"{cluster.memory_bytes / 1e9:.1f} GB; decoders: {', '.join(decoders) or 'none'}; "
        f"logs: {cluster.plan.log_dir}"
    )
    gpus = cluster.plan.gpus
    if gpus is not None and gpus.transport is not None:
        line += f"; pages by {gpus.transport.backend}, {' and '.join(gpus.ways)}"
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


def _interrupt_on_signals(say: OnProgress) -> None:
    """The first Ctrl-C or SIGTERM begins the stop, which takes seconds; more change nothing."""

    def interrupt(*_: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        say("stopping")
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
