"""`ps-sglang launch`: start a cluster, serve until Ctrl-C, stop it."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ps_sglang.errors import LaunchError, PsSglangError
from ps_sglang.gateway.config import LogFormat
from ps_sglang.gateway.telemetry.log import line_of
from ps_sglang.launch.args import parse_args
from ps_sglang.progress import OnProgress, progress

if TYPE_CHECKING:
    from ps_sglang.launch.cluster import Cluster


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 stopped on request, 1 a worker failed, 2 refused before any start."""
    say = partial(_say, LogFormat.TEXT)
    try:
        spec = parse_args(sys.argv[1:] if argv is None else argv)
        say = partial(_say, spec.log_format)
        from ps_sglang.launch.cluster import Cluster

        _interrupt_on_signals(say)
        with Cluster.start(spec, say) as cluster:
            say(ready_line(cluster))
            cluster.wait()
    except KeyboardInterrupt:
        say("stopped")
    except LaunchError as error:
        say(f"error: {error}", level="ERROR")
        return 1
    except PsSglangError as error:
        say(f"error: {error}", level="ERROR")
        return 2
    return 0


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
    if not decoders:
        return line
    body = json.dumps({"model": decoders[0], "messages": [{"role": "user", "content": "Hello!"}]})
    return (
        f"{line}\n"
        f"try: curl {cluster.url}/v1/chat/completions -H 'Content-Type: application/json' "
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


if __name__ == "__main__":
    sys.exit(main())
