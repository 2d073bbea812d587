"""What the launcher and its fork server say to each other: one JSON object a line.

The launcher writes commands to the fork server's standard input, which writes events to its
standard output. End of file on either side means that the other side is gone.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class StartMethod(StrEnum):
    """What a new process becomes."""

    FORK = "fork"
    """A Python module run inside a fork of the fork server, with all that it has imported."""
    EXEC = "exec"
    """A fresh Python interpreter running the module."""


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Command: run `python -m module *argv` as process `name`, in a session of its own."""

    name: str
    module: str
    argv: tuple[str, ...]
    env: dict[str, str]
    log: str
    start_method: StartMethod


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Command: SIGTERM to these processes (all, if none is named), SIGKILL after `grace_s`."""

    names: tuple[str, ...]
    grace_s: float


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """Command: all processes have loaded, so the shared memory they use is there to be seen."""


class Imported(msgspec.Struct, frozen=True, tag="imported"):
    """Event: the modules to share are imported; the fork server can fork from now on."""

    seconds: float


class Started(msgspec.Struct, frozen=True, tag="started"):
    """Event: process `name` exists."""

    name: str
    pid: int


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    """Event: process `name` ended, and with it every process it had started.

    `status` is the exit status, or minus the signal's number.
    """

    name: str
    status: int


Command = Start | Stop | Loaded
Event = Imported | Started | Exited

encode = msgspec.json.Encoder().encode
decode_command = msgspec.json.Decoder(Command).decode
decode_event = msgspec.json.Decoder(Event).decode
