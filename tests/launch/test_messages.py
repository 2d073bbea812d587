"""Every message survives the way over the pipe."""

from __future__ import annotations

import typing

import pytest

from ps_sglang.launch import messages
from ps_sglang.launch.messages import Exited, Imported, Loaded, Start, Started, StartMethod, Stop

COMMANDS = (
    Start("n", "m", ("a", "é\n"), {"K": "v"}, "/l", StartMethod.FORK),
    Stop(("n",), 0.5),
    Loaded(),
)
EVENTS = (Imported(1.5), Started("n", 7), Exited("n", -9))


@pytest.mark.parametrize("message", COMMANDS)
def test_commands(message: messages.Command) -> None:
    line = messages.encode(message)
    assert b"\n" not in line
    assert messages.decode_command(line) == message


@pytest.mark.parametrize("message", EVENTS)
def test_events(message: messages.Event) -> None:
    line = messages.encode(message)
    assert b"\n" not in line
    assert messages.decode_event(line) == message


def test_no_message_is_left_out() -> None:
    assert {type(m) for m in COMMANDS} == set(typing.get_args(messages.Command))
    assert {type(m) for m in EVENTS} == set(typing.get_args(messages.Event))
