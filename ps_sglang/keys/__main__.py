"""`ps-sglang keys`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Final

from ps_sglang.errors import UsageError
from ps_sglang.gateway.access import key_file
from ps_sglang.gateway.access.key_file import KeyEntry
from ps_sglang.gateway.access.limits import KeyLimits
from ps_sglang.gateway.access.principal import KeyRole, Principal
from ps_sglang.gateway_admin import exit_status, print_table
from ps_sglang.parser import user_path
from ps_sglang.progress import progress

_DESCRIPTION: Final = """\
List, add and revoke the API keys of a gateway's clients, in the file of its --api-keys. A running
gateway takes a change within a second. The file holds a hash of each key; the key itself is shown
once, when it is made."""

_EPILOG: Final = """\
A key of role `user` generates, and sees what is its tenant's: cached prompts, sessions, stored
responses. One of role `admin` also changes the cluster and sees its metrics. Keys of one tenant
share all that; a key without --tenant has a tenant of its own.

examples:
  ps-sglang keys add keys.txt alice                   prints the key, and nothing else, on stdout
  ps-sglang keys add keys.txt ci --tenant team-a --requests-at-once 8
  ps-sglang keys add keys.txt ops --role admin
  ps-sglang keys revoke keys.txt alice"""

_LIMITS: Final = {
    "requests_at_once": "unanswered requests at one time",
    "requests_per_minute": "requests that begin within a minute",
    "queued_tokens": "prompt tokens of its unanswered requests",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 2 the arguments or the file are wrong."""
    args = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], None] = args.run
    return exit_status(lambda: run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ps-sglang keys",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, run, help_text in (
        ("list", _list, "list the keys"),
        ("add", _add, "make a key and print it; the file is made if there is none"),
        ("revoke", _revoke, "take a key away"),
    ):
        added = commands.add_parser(name, help=help_text, description=help_text)
        added.set_defaults(run=run)
        added.add_argument("file", metavar="FILE", type=user_path, help="the keys file")
        if name != "list":
            added.add_argument("name", metavar="NAME", help="what the key is called in logs")
    add = commands.choices["add"]
    add.add_argument("--role", choices=[role.value for role in KeyRole], default=KeyRole.USER.value)
    add.add_argument("--tenant", metavar="NAME", help="whose it is (default: the key's own name)")
    for field, help_text in _LIMITS.items():
        flag = f"--{field.replace('_', '-')}"
        add.add_argument(flag, type=int, metavar="N", help=f"at most N {help_text}")
    return parser


def _list(args: argparse.Namespace) -> None:
    rows = [("NAME", "ROLE", "TENANT", "LIMITS")]
    for entry in key_file.read(args.file):
        who = entry.principal
        rows.append((who.name, who.role, who.tenant, " ".join(entry.limit_words()) or "-"))
    print_table(rows)


def _add(args: argparse.Namespace) -> None:
    limits = {field: value for field in _LIMITS if (value := getattr(args, field)) is not None}
    for field, value in limits.items():
        if value < 1:
            raise UsageError(f"--{field.replace('_', '-')} is {value}, must be at least 1")
    tenant = args.name if args.tenant is None else args.tenant
    who = Principal(args.name, KeyRole(args.role), tenant, KeyLimits(**limits))
    secret = key_file.new_secret()
    key_file.add(args.file, KeyEntry(who, key_file.digest_of(secret)))
    progress(f"{who.name} is in {args.file} ({who.role} of {who.tenant}); its key, shown once:")
    print(secret)


def _revoke(args: argparse.Namespace) -> None:
    key_file.revoke(args.file, args.name)
    print(f"{args.name} is revoked")


if __name__ == "__main__":
    sys.exit(main())
