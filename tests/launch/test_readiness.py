"""A worker is ready when it answers itself, not when somebody answers on its port."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ps_sglang.launch.readiness import Probe, is_ready
from ps_sglang.launch.spec import LOOPBACK

pytestmark = pytest.mark.timeout(30)


class Healthy(HTTPServer):
    """Answers every health request, and lets a test wait for the third of them."""

    asked = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.third = threading.Event()


class _Answer(BaseHTTPRequestHandler):
    server: Healthy

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.server.asked += 1
        if self.server.asked == 3:
            self.server.third.set()

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
    probe = Probe("here", partial(is_ready, LOOPBACK, server.server_port, lambda: os.getsid(0)))
    probe.start()
    probe.join(20)
    assert probe.ready


def test_another_process_on_the_port_does_not_make_a_worker_ready(server: Healthy) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as worker:
        probe = Probe("there", partial(is_ready, LOOPBACK, server.server_port, lambda: worker.pid))
        probe.start()
        try:
            # By the third question, what the first two answers meant has been decided.
            assert server.third.wait(20)
            assert not probe.ready
        finally:
            probe.cancel()
            worker.kill()
        probe.join(20)
        assert not probe.ready


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
    assert server.asked == 0
