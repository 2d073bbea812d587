"""`ps-sglang workers`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Final

from ps_sglang.errors import UsageError
from ps_sglang.gateway_admin import (
    RefusedError,
    add_gateway,
    exit_status,
    path_on_worker,
    print_table,
)
from ps_sglang.gateway_http import Json
from ps_sglang.workers.client import WorkersClient

_DESCRIPTION: Final = """\
See and change who serves in a running cluster: workers join, drain and leave, and a decode worker
gets new weights, while the others serve on. No process is started or ended."""

_EPILOG: Final = """\
A worker that joins runs already, on any machine: an SGLang server with the ps_sglang plugin, in
disaggregation mode, with the flags of the cluster's other workers (their logs begin with them).
What does not fit the cluster is refused, all differences in one message.

examples:
  ps-sglang workers list
  ps-sglang workers add http://10.0.0.2:30000
  ps-sglang workers swap math ./math-v2         every worker of decoder math, one after another
  ps-sglang workers remove decode-math --now"""

_COLUMNS: Final = ("NAME", "ROLE", "DECODER", "STATE", "REQUESTS", "URL")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 the gateway refused it, 2 wrong arguments."""
    args = _parser().parse_args(argv)
    run: Callable[[WorkersClient, argparse.Namespace], None] = args.run
    return exit_status(lambda: run(WorkersClient(args.gateway), args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ps-sglang workers",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_gateway(parser)
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(
        name: str, run: Callable[[WorkersClient, argparse.Namespace], None], help_text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help_text, description=help_text)
        added.set_defaults(run=run)
        return added

    command("list", _list, "list the workers")
    add = command("add", _add, "have a running worker join")
    add.add_argument("url", metavar="URL", help="the worker's address")
    add.add_argument("--name", help="its name in the cluster (default: its role and address)")
    add.add_argument("--decoder", help="what clients call it (default: its served model name)")
    add.add_argument(
        "--bootstrap-host",
        metavar="HOST",
        help="of a prefill worker's bootstrap server (default: that of URL)",
    )
    add.add_argument(
        "--allow-unverified", action="store_true", help="admit a decoder without a manifest"
    )
    for name, run, help_text in (
        ("drain", _drain, "let a worker finish what it has, and send it nothing new"),
        ("resume", _resume, "send a drained worker requests again"),
        ("remove", _remove, "have a worker leave, when it has finished what it has"),
        ("swap", _swap, "give a decode worker other weights; its cache stays warm"),
    ):
        subparser = command(name, run, help_text)
        subparser.add_argument(
            "name", metavar="NAME", help="a worker" + (" or a decoder" if name == "swap" else "")
        )
        if name == "remove":
            subparser.add_argument(
                "--now", action="store_true", help="at once: its requests go to others or end"
            )
        if name == "swap":
            subparser.add_argument(
                "model_path", metavar="PATH", help="a checkpoint folder, on the worker's machine"
            )
    return parser


def _list(client: WorkersClient, args: argparse.Namespace) -> None:
    print_table([_COLUMNS, *map(_row, client.list())])


def _row(worker: Json) -> tuple[str, ...]:
    state = worker["state"] + (f" ({worker['problem']})" if worker["problem"] else "")
    requests = str(worker["load"]["requests"])
    adapters = len(worker["decoders"]) - 1
    decoder = (worker["decoder"] or "-") + (f" +{adapters}" if adapters > 0 else "")
    return worker["name"], worker["role"], decoder, state, requests, worker["url"]


def _add(client: WorkersClient, args: argparse.Namespace) -> None:
    fields = ("url", "name", "decoder", "bootstrap_host", "allow_unverified")
    joining = {name: value for name in fields if (value := getattr(args, name))}
    worker = client.add(joining)
    print(f"{worker['name']} joined as a {worker['role']} worker")


def _drain(client: WorkersClient, args: argparse.Namespace) -> None:
    worker = client.drain(args.name)
    print(f"{worker['name']} is draining; {worker['load']['requests']} requests left")


def _resume(client: WorkersClient, args: argparse.Namespace) -> None:
    worker = client.resume(args.name)
    print(f"{worker['name']} is {worker['state']}")


def _remove(client: WorkersClient, args: argparse.Namespace) -> None:
    client.remove(args.name, now=args.now)
    print(f"{args.name} left")


def _swap(client: WorkersClient, args: argparse.Namespace) -> None:
    """Swap the named worker, or one after another all workers of the named decoder."""
    workers = client.list()
    names = [worker["name"] for worker in workers if worker["name"] == args.name] or [
        worker["name"] for worker in workers if args.name in worker["decoders"]
    ]
    if not names:
        worker_names = [worker["name"] for worker in workers]
        raise UsageError(f"there is no worker or decoder {args.name!r}; workers: {worker_names}")
    path = path_on_worker(args.model_path)
    for done, name in enumerate(names):
        try:
            client.swap(name, path)
        except RefusedError as error:
            if not done:
                raise
            raise RefusedError(
                f"{error} ({', '.join(names[:done])} got the new weights, "
                f"{', '.join(names[done:])} did not)"
            ) from error
        print(f"{name} serves {path}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
