"""Messages from scheduler to scheduler on one host, with no other thread on their way.

A *mailbox* is a datagram socket of a process, into which other processes put messages. While pages
are copied and digested every core is busy, and each thread that a message has to wake waits up to
milliseconds to be run; zmq takes a message through three of them. A message that is posted lies in
the receiver's queue at once, and its scheduler looks there between two batches of pages.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

from ps_sglang.engine.transfer.messages import Frames, MalformedMessageError
from ps_sglang.wires import Count, Refusal, Refusals, count_nothing

logger = logging.getLogger(__name__)

_LONGEST: Final = 1 << 16  # bytes of a message; the kernel would take about 200 KB
_CREDENTIALS: Final = struct.Struct("iII")  # pid, uid, gid, as the kernel fills them in

Receive = Callable[[Frames], None]


class Mailbox:
    """A datagram socket of this process, into which others of the same user and host can post.

    All users can list the names of sockets, so the kernel is asked who has sent a message.
    """

    def __init__(self, name: str, count: Count = count_nothing) -> None:
        """Open it under a name that no other process will ever use.

        `count` hears of what is dropped. Raises OSError if there is one of this name.
        """
        self._refusals = Refusals("mailbox", count)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        # Abstract names go with their process. Another user's mailbox never has the one looked for.
        namespace = os.stat("/proc/self/ns/user").st_ino
        self._prefix = f"\0ps_sglang-{namespace}-{os.geteuid()}-"
        self._socket.bind(self._prefix + name)

    @property
    def fd(self) -> int:
        """Readable while there is something to collect."""
        return self._socket.fileno()

    def post(self, name: str, message: bytes) -> bool:
        """Put a message into another mailbox, from any thread; never blocks.

        Returns False if it has to go another way: this host has no such mailbox, it is full, or the
        message is too long for it.
        """
        if len(message) > _LONGEST:
            return False
        try:
            self._socket.sendto(message, self._prefix + name)
        except OSError:
            return False
        return True

    def collect(self, receive: Receive) -> None:
        """Hand every message that has come to `Lender.receive` or `Reader.receive`."""
        with contextlib.suppress(BlockingIOError):  # there is no more
            while True:
                message, credentials, *_ = self._socket.recvmsg(
                    _LONGEST, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
                if not _are_ours(credentials):
                    self._refusals.add(Refusal.UNAUTHENTICATED, "of another user")
                    continue
                try:
                    receive([message])
                except MalformedMessageError as error:
                    self._refusals.add(Refusal.MALFORMED, str(error))
                except Exception:  # the scheduler's loop: no message may end it
                    logger.exception("Failed on a message from the KV transfer mailbox")

    def close(self) -> None:
        """What is posted from now on has to go another way."""
        self._socket.close()


def _are_ours(received: list[tuple[int, int, bytes]]) -> bool:
    return any(
        (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
        and _CREDENTIALS.unpack(data)[1] == os.geteuid()
        for level, kind, data in received
    )
