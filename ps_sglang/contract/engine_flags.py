"""Engine flags on which the pages of two workers depend: they must be equal for every role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ps_sglang.errors import ContractError

SHARED_FLAGS = ("--page-size", "--kv-cache-dtype", "--dtype")


def check_engine_flags(roles: Mapping[str, Sequence[str]]) -> None:
    """Refuse per-role SGLang flags (role -> argument list) that give workers different pages.

    Raises ContractError listing every flag that differs, with each role's value.
    """
    rows = []
    for flag in SHARED_FLAGS:
        values = {role: _value(flag, arguments) for role, arguments in roles.items()}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{r} {v or '(default)'}" for r, v in values.items())
            rows.append(f"{flag}: {shown}")
    if rows:
        message = "workers that share a cache need the same engine flags; give these for all roles:"
        raise ContractError("\n  ".join([message, *rows]), tuple(rows))


def _value(flag: str, arguments: Sequence[str]) -> str | None:
    """The last value of `--flag value` or `--flag=value`, as argparse takes it."""
    value = None
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            value = arguments[index + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
    return value
