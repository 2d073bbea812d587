"""Runs one program in a process that can do nothing but compute. Started by `sandbox`, alone.

Reads a job from stdin, answers on what was stdout: `{"values": [...]}`, a value for each call, or
nothing. Knows no expected values, so a program cannot make itself pass by what it does here.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
import types
from typing import Any

# What programs may import, beside what an interpreter has loaded anyway: the same everywhere.
_IMPORTABLE = (
    "abc array bisect calendar cmath collections collections.abc copy dataclasses datetime decimal "
    "enum fractions functools hashlib heapq itertools json math numbers operator random re "
    "statistics string textwrap time typing"
)
_NOBODY = 65534
# Everything else that Python tells an audit hook is refused, whatever a later Python may add;
# "import" is told of modules that are not loaded yet.
_ALLOWED = frozenset(
    [
        *("array.__new__", "builtins.id", "compile", "exec", "object.__setattr__"),
        "sys._getframemodulename",
    ]
)


def main() -> None:
    job = json.load(sys.stdin)
    for module in _IMPORTABLE.split():
        if module in job["program"]:
            __import__(module)
    answer = _private_stdout()
    _limit(job["limits"])
    _drop_user()
    _refuse_all_but_computing()
    values = _run(job["program"], job["calls"])
    os.write(answer, json.dumps({"values": values}).encode())
    os._exit(0)


def _private_stdout() -> int:
    """The pipe to the parent, moved away from where prints go: those end nowhere."""
    answer = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return answer


def _limit(limits: dict[str, int]) -> None:
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, name), (limit, limit))


def _drop_user() -> None:
    """RLIMIT_NPROC does not bind root, and root may do too much anyway."""
    if os.geteuid() != 0:
        return
    # Inside a user namespace there may be no other user to become; the audit hook still stands.
    with contextlib.suppress(OSError):
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)


def _refuse_all_but_computing() -> None:
    allowed, refuse = _ALLOWED, io.UnsupportedOperation

    def hook(event: str, args: tuple[Any, ...]) -> None:
        # Both an OSError and a ValueError: the standard library's fallbacks expect one of them.
        if event not in allowed:
            raise refuse(event)

    sys.addaudithook(hook)


def _run(program: str, calls: list[Any]) -> list[Any]:
    # Copied before the program can lay hands on anything: it may change its arguments.
    calls = [(name, json.loads(json.dumps(arguments))) for name, arguments in calls]
    # A module like any other: dataclasses look their own module up.
    module = sys.modules["answer"] = types.ModuleType("answer")
    scope = vars(module)
    exec(compile(program, "<answer>", "exec"), scope)
    return [_plain(scope[name](*arguments)) for name, arguments in calls]


def _plain(value: Any) -> Any:
    """`value` if it is JSON by its exact types, so that no class can decide how it compares."""
    if type(value) is list:
        return [_plain(element) for element in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(type(value).__name__)


if __name__ == "__main__":
    main()
