"""The gateway processes behind one port, as one of them sees the others.

Each process connects to each other one, over Unix sockets in a folder of the launcher's, and tells
on this connection what happens at it. So what one process says reaches another in the order in
which it was said, and an answer to a question comes behind all that was said before.

The first process is the owner: workers join it, it probes them and decides what becomes of them.
The others follow it, see `following`. What happens to requests is told by all, see `sharing`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from ps_sglang.errors import UsageError
from ps_sglang.gateway.dispatch.background import Background, cancel
from ps_sglang.gateway.peers.messages import (
    Hello,
    Message,
    Nothing,
    PeerAnswer,
    PeerQuestion,
    Question,
    decode,
    encode,
)
from ps_sglang.gateway.peers.sockets import http_socket_of, socket_of

log = logging.getLogger("ps_sglang.gateway")

OWNER: Final = 0
FLUSH_SECONDS: Final = 0.002
"""What happens in this time is told together."""
RETRY_SECONDS: Final = 0.1
ANSWER_SECONDS: Final = 5.0
"""A process that does not answer in this time is passed over: it hangs, or has died."""
MOST_WAITING: Final = 100_000
"""So many messages that a process does not take: it hangs, and begins anew if it ever goes on."""
_LENGTH: Final = 4
_OF_OTHERS: Final = 0o077

Handler = Callable[[int, Message], None]
Answer = tuple[int, bytes]
"""A count, and what was asked for, see `PeerAnswer`."""
Answering = Callable[[Question], Answer | Coroutine[Any, Any, Answer]]
"""Answers at once, or gives what waits for the answer."""


class GatewayPeers:
    """The other processes of `count`; this one is number `own`. None are in no `folder`.

    `handlers` takes each message with its sender, by the message's class. `answers` answers.
    Register functions in `greetings` for what a process must be told first, in `lost` to be called
    with a process that is gone.
    """

    def __init__(self, folder: Path | None = None, own: int = OWNER, count: int = 1) -> None:
        assert count == 1 or folder is not None, "several processes meet in a folder"
        self.own = own
        self.count = count
        self.handlers: dict[type[Message], Handler] = {}
        self.answers: Answering = lambda question: (0, b"")
        self.greetings: list[Callable[[int], Iterable[Message]]] = []
        self.lost: list[Callable[[int], None]] = []
        self.before_asking: Callable[[], None] = lambda: None
        self._folder = folder
        self._links = {
            number: _Link(self, number, socket_of(folder, number))
            for number in range(count)
            if number != own and folder is not None
        }
        self._heard: dict[int, asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None
        self._number = 0
        self._late = Background()
        self._asked: dict[tuple[int, int], asyncio.Future[PeerAnswer | None]] = {}

    @property
    def is_owner(self) -> bool:
        """Whether workers join this process."""
        return self.own == OWNER

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process, so that nothing need be told."""
        return self.count == 1

    def http_socket(self, process: int) -> Path:
        """Where a process serves what others pass on to it."""
        assert self._folder is not None
        return http_socket_of(self._folder, process)

    async def start(self) -> None:
        """Listen to the others, and connect to them as they come; `close` must follow.

        Raises UsageError for a folder that is not this user's alone.
        """
        if self._folder is None or self.is_alone:
            return
        mode = self._folder.stat().st_mode
        if mode & _OF_OTHERS:
            raise UsageError(
                f"gateway configuration: `peers` is {self._folder}, which others than its owner "
                f"may enter (mode {mode & 0o777:o}); chmod 700 it"
            )
        path = socket_of(self._folder, self.own)
        self._server = await asyncio.start_unix_server(self._listen, path)
        for link in self._links.values():
            link.start()

    async def close(self) -> None:
        """Tell and hear nothing more."""
        await self._late.close()
        await cancel(*(link.task for link in self._links.values() if link.task is not None))
        for writer in self._heard.values():
            writer.close()
        if self._server is not None:
            self._server.close()

    def send(self, message: Message, to: int | None = None) -> None:
        """Tell all, or one of them, soon; who is not there gets greetings when it comes."""
        for number, link in self._links.items():
            if to in (None, number):
                link.send(message)

    def send_latest(
        self, subject: Hashable, make: Callable[[], Message], to: int | None = None
    ) -> None:
        """As `send`, of what `make` makes when it is told; only once of a subject."""
        for number, link in self._links.items():
            if to in (None, number):
                link.send_latest(subject, make)

    async def ask(
        self, question: Question, seconds: float | None = ANSWER_SECONDS
    ) -> list[PeerAnswer]:
        """The answers of all that are there and answer in time; None waits for as long as it takes.

        When they come, all that these processes had done before has been heard here.
        """
        if self.is_alone:
            return []
        self.before_asking()
        self._number += 1
        waiting = {}
        for number, link in self._links.items():
            if link.is_connected:
                key = (number, self._number)
                waiting[key] = self._asked[key] = asyncio.get_running_loop().create_future()
                link.send(PeerQuestion(self._number, question))
        try:
            if waiting:
                await asyncio.wait(waiting.values(), timeout=seconds)
        finally:
            for key in waiting:
                del self._asked[key]
        found = [one.result() for one in waiting.values() if one.done()]
        return [answer for answer in found if answer is not None]

    async def silent(self) -> set[int]:
        """The processes that are there and do not answer in time."""
        there = self._connected()
        answers = await self.ask(Nothing(), ANSWER_SECONDS)
        return there & self._connected() - {answer.process for answer in answers}

    def _connected(self) -> set[int]:
        return {number for number, link in self._links.items() if link.is_connected}

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        process: int | None = None
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(_LENGTH), "big")
                for message in decode(await reader.readexactly(length)):
                    if isinstance(message, Hello):
                        process = message.process
                        self._came(process, writer)
                    elif process is not None and self._heard.get(process) is writer:
                        self._hear(process, message)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except msgspec.DecodeError as error:
            log.error("gateway process %s says what is no message: %s", process, error)
        finally:
            writer.close()
            if process is not None and self._heard.get(process) is writer:
                self._gone(process)

    def _came(self, process: int, writer: asyncio.StreamWriter) -> None:
        if process in self._heard:  # it has died, and its end was not noticed yet
            self._gone(process)
        self._heard[process] = writer

    def _gone(self, process: int) -> None:
        del self._heard[process]
        for listener in self.lost:
            listener(process)
        self.unanswered(process)

    def unanswered(self, process: int) -> None:
        """No answer comes from a process that is gone."""
        for (number, _), future in self._asked.items():
            if number == process and not future.done():
                future.set_result(None)

    def _hear(self, process: int, message: Message) -> None:
        if isinstance(message, PeerQuestion):
            answer = self.answers(message.question)
            if isinstance(answer, tuple):
                self._answer(process, message.number, answer)
            else:
                self._late.start(self._answer_late(process, message.number, answer))
        elif isinstance(message, PeerAnswer):
            future = self._asked.get((process, message.number))
            if future is not None and not future.done():
                future.set_result(message)
        elif (handler := self.handlers.get(type(message))) is not None:
            handler(process, message)

    def _answer(self, process: int, number: int, answer: Answer) -> None:
        self.send(PeerAnswer(self.own, number, *answer), to=process)

    async def _answer_late(
        self, process: int, number: int, answering: Coroutine[Any, Any, Answer]
    ) -> None:
        self._answer(process, number, await answering)


class _Link:
    """What is to be told to one process."""

    def __init__(self, peers: GatewayPeers, number: int, path: Path) -> None:
        self.is_connected = False
        self.task: asyncio.Task[None] | None = None
        self._peers = peers
        self._number = number
        self._path = path
        self._messages: list[Message] = []
        self._latest: dict[Hashable, Callable[[], Message]] = {}
        self._has_some = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None

    def start(self) -> None:
        """Connect, and again when that ends."""
        self.task = asyncio.create_task(self._run(), name=f"gateway process {self._number}")

    def send(self, message: Message) -> None:
        """Tell it soon; nothing if it is not there."""
        if not self.is_connected:
            return
        self._messages.append(message)
        self._has_some.set()
        if len(self._messages) > MOST_WAITING and self._writer is not None:
            self._writer.transport.abort()

    def send_latest(self, subject: Hashable, make: Callable[[], Message]) -> None:
        """Tell it what `make` will make."""
        if self.is_connected:
            self._latest[subject] = make
            self._has_some.set()

    async def _run(self) -> None:
        while True:
            with suppress(OSError):
                await self._connected()
            self.is_connected = False
            self._messages.clear()
            self._latest.clear()
            self._peers.unanswered(self._number)
            await asyncio.sleep(RETRY_SECONDS)

    async def _connected(self) -> None:
        reader, writer = await asyncio.open_unix_connection(self._path)
        self._writer = writer
        try:
            self.is_connected = True
            self.send(Hello(self._peers.own))
            for greet in self._peers.greetings:
                for message in greet(self._number):
                    self.send(message)
            ended = asyncio.create_task(reader.read(1))  # nothing is ever said here
            try:
                while not ended.done():
                    await self._tell(writer, ended)
            finally:
                await cancel(ended)
        finally:
            writer.close()

    async def _tell(self, writer: asyncio.StreamWriter, ended: asyncio.Task[bytes]) -> None:
        some = asyncio.create_task(self._has_some.wait())
        try:
            await asyncio.wait((some, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            some.cancel()
        if ended.done():
            return
        await asyncio.sleep(FLUSH_SECONDS)
        self._has_some.clear()
        messages, self._messages = self._messages, []
        messages += [make() for make in self._latest.values()]
        self._latest.clear()
        content = encode(messages)
        writer.write(len(content).to_bytes(_LENGTH, "big") + content)
        await writer.drain()
