"""Serve what is planned until Ctrl-C, and say what becomes of it."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ps_sglang.errors import LaunchError, PsSglangError, ServingEndedError
from ps_sglang.gateway.config import LogFormat, is_loopback
from ps_sglang.gateway.telemetry.log import line_of
from ps_sglang.gateway_http import KEY_VARIABLE
from ps_sglang.progress import OnProgress, progress

if TYPE_CHECKING:
    from ps_sglang.launch.cluster import Cluster
    from ps_sglang.launch.prepare import Plan
    from ps_sglang.launch.spec import ClusterSpec

STATUSES = (
    "Exit status: 0 stopped, 1 what was started failed, 2 refused before anything started,\n"
    "3 what served has died, more often than it is restarted."
)


class Speaker:
    """Writes lines for whoever started this, in `log_format`."""

    def __init__(self) -> None:
        self.log_format = LogFormat.TEXT

    def __call__(self, line: str, *, level: str = "INFO") -> None:
        """Write a line."""
        if self.log_format is LogFormat.TEXT:
            progress(line)
            return
        entry = line_of(self.log_format, line, level=level, logger="ps_sglang.launch")
        sys.stderr.write(entry + "\n")
        sys.stderr.flush()


def serve(make_plan: Callable[[], Plan]) -> int:
    """Bring up what `make_plan` plans, and supervise it; returns one of STATUSES."""
    return exit_status(lambda say: serve_plan(make_plan(), say))


def exit_status(command: Callable[[Speaker], None]) -> int:
    """Run a command that serves until Ctrl-C; returns one of STATUSES."""
    say = Speaker()
    try:
        command(say)
    except KeyboardInterrupt:
        say("stopped")
    except PsSglangError as error:
        say(f"error: {error}", level="ERROR")
        return _status(error)
    return 0


def serve_plan(plan: Plan, say: Speaker) -> None:
    """Bring up a plan on this machine, and supervise it; raises PsSglangError."""
    say.log_format = plan.spec.log_format
    if plan.spec.dry_run:
        from ps_sglang.launch.dry_run import table

        print(table(plan))
        return
    warn_of_no_keys(plan.spec, say)
    from ps_sglang.launch.cluster import Cluster

    interrupt_on_signals(say)
    with Cluster.start_plan(plan, say) as cluster:
        say(ready_line(cluster))
        cluster.wait()


def warn_of_no_keys(spec: ClusterSpec, say: OnProgress) -> None:
    """Say it if anybody on the network may use the cluster."""
    if spec.no_keys and not is_loopback(spec.host):
        say(f"no keys: whoever reaches {spec.host} may use this cluster")


def _status(error: PsSglangError) -> int:
    if isinstance(error, ServingEndedError):
        return 3
    return 1 if isinstance(error, LaunchError) else 2


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
    return line + (try_line(cluster.url, decoders[0], cluster.plan.spec) if decoders else "")


def try_line(url: str, decoder: str, spec: ClusterSpec) -> str:
    """A request to copy, on a line of its own."""
    key = "" if spec.api_keys is None else f"-H 'Authorization: Bearer '${KEY_VARIABLE} "
    return (
        f"\ntry: curl {url}/v1/chat/completions {key}-H 'Content-Type: application/json' "
        f"-d '{chat_body(decoder, 'Hello!')}'"
    )


def chat_body(decoder: str, question: str) -> str:
    """The body of such a request. It ends soon, also where a model finds no end."""
    messages = [{"role": "user", "content": question}]
    return json.dumps({"model": decoder, "max_tokens": 64, "messages": messages})


def interrupt_on_signals(say: OnProgress) -> None:
    """The first Ctrl-C or SIGTERM begins the stop, which takes seconds; more change nothing."""

    def interrupt(*_: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        say("stopping")
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
