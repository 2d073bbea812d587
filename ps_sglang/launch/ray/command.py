"""What the launcher has an actor run, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


class ActorCommand(msgspec.Struct, frozen=True):
    """What an actor runs: the words after `ps-sglang`, and the folder `log_dir` for its logs.

    Without one it is a folder beside Ray's logs. `secret` is the text of the cluster's key, and
    `environ` is added to the host's environment.
    """

    name: str
    argv: tuple[str, ...]
    secret: str
    environ: dict[str, str]
    log_dir: str | None = None


@dataclass(frozen=True)
class ChildEnd:
    """How a command ended, with the last lines that it wrote."""

    status: int
    log_tail: str
