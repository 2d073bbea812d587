"""A worker is ready when it answers itself, not when somebody answers on its port."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count

import pytest

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.launch.readiness import Probe, is_ready
from ps_sglang.launch.spec import LOOPBACK

pytestmark = pytest.mark.timeout(30)


class Healthy(HTTPServer):
    """Answers every health request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.asked: list[str | None] = []


class _Answer(BaseHTTPRequestHandler):
    server: Healthy

    def do_GET(self) -> None:
        self.server.asked.append(self.headers["Authorization"])  # before the probe reads on
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Healthy]:
    with Healthy() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_process_that_listens_is_ready(server: Healthy) -> None:
    key = ClusterKey.make()
    pid = partial(os.getsid, 0)
    probe = Probe("here", partial(is_ready, LOOPBACK, server.server_port, pid, key))
    probe.start()
    probe.join(20)
    assert probe.ready
    assert server.asked == [key.authorization]


def test_another_process_on_the_port_does_not_make_a_worker_ready(server: Healthy) -> None:
    """Nor does it get the key."""
    looks, third = count(1), threading.Event()
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as worker:

        def pid() -> int:
            if next(looks) == 3:  # by then the first two looks have led to nothing
                third.set()
            return worker.pid

        key = ClusterKey.make()
        probe = Probe("there", partial(is_ready, LOOPBACK, server.server_port, pid, key))
        probe.start()
        try:
            assert third.wait(20)
        finally:
            probe.cancel()
            worker.kill()
        probe.join(20)
        assert not probe.ready
        assert not server.asked


def test_a_worker_that_has_not_started_is_not_asked(server: Healthy) -> None:
    looked = threading.Event()

    def pid() -> int | None:
        looked.set()
        return None

    probe = Probe("not yet", partial(is_ready, LOOPBACK, server.server_port, pid))
    probe.start()
    assert looked.wait(20)
    probe.cancel()
    probe.join(20)
    assert not probe.ready
    assert not server.asked
