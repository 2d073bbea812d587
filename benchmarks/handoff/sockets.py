"""What a worker's KV manager gives a Lender or a Reader to hear and to speak."""

from __future__ import annotations

import secrets
import threading
from typing import Any, Final

import zmq

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.engine.transfer.lender import Lender
from ps_sglang.engine.transfer.mailbox import Mailbox
from ps_sglang.engine.transfer.outbox import Outbox
from ps_sglang.engine.transfer.reader import Reader
from ps_sglang.engine.transfer.serving import serve
from ps_sglang.engine.waiting import Doorbell
from ps_sglang.wires import Refusals, as_client, as_listener

OVER_TCP: Final = ("tcp", "tcp_without_key")
_KEY: Final = ClusterKey("the-key-of-both-workers-of-a-benchmark")


class Port:
    """A port of the loopback interface, and a mailbox; what is sent goes out by :attr:`outbox`."""

    def __init__(self, way: str) -> None:
        """Open both, as `way` needs them: what goes over TCP goes to no mailbox."""
        self._context: zmq.Context[Any] = zmq.Context()
        key = None if way == "tcp_without_key" else _KEY
        self.name = secrets.token_hex(8)
        self.mailbox = Mailbox(self.name)
        self.doorbell = Doorbell([self.mailbox.fd])
        as_listener(self._context, key)
        self._socket = self._context.socket(zmq.PULL)
        self._socket.bind("tcp://127.0.0.1:*")
        as_client(self._context, key)
        self.outbox = Outbox(self._context, None if way in OVER_TCP else self.mailbox)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def listen(self, side: Lender | Reader) -> None:
        """Hand every message to `side`, in a thread of its own."""

        def receive() -> None:
            serve(
                self._socket,
                side.receive,
                side.tick,
                refusals=Refusals("transfer"),
                until=self._closing.is_set,
            )

        self._thread = threading.Thread(target=receive, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and give back the sockets and the mailbox."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self.outbox.close()
        self._context.destroy(linger=0)
        self.mailbox.close()
        self.doorbell.close()
