"""`ps-sglang worker`: one worker that looks after itself, in a cluster on any machines."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from ps_sglang.errors import UsageError
from ps_sglang.launch.args import glued, listed
from ps_sglang.launch.serve import STATUSES, serve
from ps_sglang.launch.shared_args import add_shared, settled
from ps_sglang.launch.spec import ClusterSpec
from ps_sglang.parser import SettingsParser, user_path

if TYPE_CHECKING:
    from ps_sglang.launch.prepare import Plan

_PROG: Final = "ps-sglang worker"
_DESCRIPTION: Final = f"""\
Start one worker of a running cluster, on this machine, and look after it.

Compares its models with the base, takes free ports, starts SGLang, joins the gateway once it
answers, and says every few seconds that it is there. A gateway that has restarted is joined again.
An engine that dies or hangs is restarted. SIGTERM and Ctrl-C let it finish its requests first.
{STATUSES}"""
_EPILOG: Final = """\
Models and engine flags are those of `ps-sglang launch`. The page size and all else that workers
have in common must be as in the rest of the cluster; all differences come in one message.

examples:
  {prog} --role prefill --base ./qwen3 --gateway http://10.0.0.1:8000
  {prog} --role decode --base ./qwen3 --model math=./math --gateway http://10.0.0.1:8000
  {prog} --spec cluster.yaml --role decode --model math
  {prog} --role decode --base ./qwen3 --model a=./adapter1,b=./adapter2 \\
      --gateway http://10.0.0.1:8000 --advertise 10.0.0.7 --max-restarts 0"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: see `serve.STATUSES`."""

    def plan() -> Plan:
        spec = parse_args(sys.argv[1:] if argv is None else argv)
        from ps_sglang.launch.prepare import prepare

        planned = prepare(spec)
        if len(planned.workers) > 1:
            names = ", ".join(worker.name for worker in planned.workers)
            raise UsageError(
                f"these models need {len(planned.workers)} workers ({names}): adapters share one, "
                "a whole model has its own; start a command for each"
            )
        return planned

    return serve(plan)


def parse_args(argv: Sequence[str]) -> ClusterSpec:
    """The part of a cluster that one worker is.

    Raises UsageError, which says in one line what is wrong with which argument.
    """
    parsed, rest = _parser().parse_known_args(glued(argv))
    options: dict[str, Any] = vars(parsed)
    if many := [model for model in options.get("model", ()) if "*" in model]:
        raise UsageError(f"--model {many[0]}: one command starts one worker")
    if file := options.pop("spec", None):
        from ps_sglang.launch.worker_spec import worker_options

        options = worker_options(file, options.pop("model", ())) | options
    for flag in ("role", "base", "gateway"):
        if flag not in options:
            raise UsageError(f"--{flag} is missing (see {_PROG} --help)")
    role, models = options.pop("role"), options.pop("model", ())
    if role == "prefill" and models:
        raise UsageError("--model does not go with --role prefill: it serves the base")
    if role == "decode" and not models:
        raise UsageError("--model is missing: which decoders is the worker to serve?")
    gateway = options.pop("gateway")
    address = _address(gateway)
    if "advertise" not in options:
        options["advertise"] = _address_towards(gateway, *address)
    return ClusterSpec(
        prefill=options.pop("base"),
        decoders=models,
        prefill_replicas=1 if role == "prefill" else 0,
        join=gateway,
        engine_args=(*options.pop("engine_args", ()), *rest),
        **settled(options),
    )


def _parser() -> SettingsParser:
    parser = SettingsParser(
        _PROG,
        description=_DESCRIPTION,
        epilog=_EPILOG.format(prog=_PROG),
        usage=f"{_PROG} --role ROLE --base MODEL --gateway URL [options] [engine flags]",
    )
    add = parser.add_argument
    add(
        "--spec",
        type=user_path,
        metavar="FILE",
        help="take the base, the gateway's address, the flags of workers and what is said of a "
        "decoder that --model names from the cluster's specification; flags given here win over it",
    )
    add("--role", choices=("prefill", "decode"), help="what the worker does")
    add("--base", metavar="MODEL", help="the base model of the cluster")
    add(
        "--model",
        metavar="MODEL,...",
        type=listed,
        help="what a decode worker serves: a whole model, or adapters",
    )
    add("--gateway", metavar="URL", help="the gateway of the cluster, which must be running")
    add(
        "--port",
        type=int,
        dest="worker_port",
        metavar="N",
        help="port of its HTTP server, as for probes of /ready (default: any free one)",
    )
    add_shared(parser)
    return parser


def _address(gateway: str) -> tuple[str, int]:
    """Host and port of the gateway's URL; raises UsageError."""
    try:
        url = urlsplit(gateway)
        host, port = url.hostname, url.port or 80
    except ValueError:
        host = None
    if not host:
        raise UsageError(f"--gateway {gateway}: must be a URL like http://10.0.0.1:8000")
    return host, port


def _address_towards(gateway: str, host: str, port: int) -> str:
    """The address of this machine from which it reaches the gateway; raises UsageError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise UsageError(f"--gateway {gateway}: {error}") from error
