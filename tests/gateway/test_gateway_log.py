"""The gateway's log: lines are gathered, and none is lost."""

from __future__ import annotations

import asyncio
import io
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ps_sglang.gateway.telemetry.log import BufferedHandler


class Stream(io.StringIO):
    """Tells when something is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = asyncio.Event()

    def write(self, text: str) -> int:
        self.written.set()
        return super().write(text)


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def log(stream: Stream) -> Iterator[logging.Logger]:
    handler = BufferedHandler(stream)
    logger = logging.Logger("test")
    logger.addHandler(handler)
    yield logger
    handler.close()


async def test_lines_are_written_together_and_soon(log: logging.Logger, stream: Stream) -> None:
    log.info("one")
    log.info("two")
    assert stream.getvalue() == ""
    await stream.written.wait()
    assert stream.getvalue() == "one\ntwo\n"
    stream.written.clear()
    log.info("three")
    assert not stream.written.is_set()
    await stream.written.wait()
    assert stream.getvalue() == "one\ntwo\nthree\n"


async def test_an_error_is_written_at_once(log: logging.Logger, stream: Stream) -> None:
    log.info("before")
    log.error("error")
    assert stream.getvalue() == "before\nerror\n"


async def test_many_lines_are_written_at_once(log: logging.Logger, stream: Stream) -> None:
    for number in range(600):
        log.info("%d", number)
    assert stream.getvalue().count("\n") == 512


def test_without_an_event_loop_each_line_is_written_at_once(
    log: logging.Logger, stream: Stream
) -> None:
    log.info("one")
    assert stream.getvalue() == "one\n"


@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "raise KeyError"])
def test_no_line_is_lost_at_the_end(end: str) -> None:
    code = f"""
import asyncio, logging, sys
from ps_sglang.gateway.telemetry import log

async def main():
    for number in range(3):
        logging.getLogger("x").info("line %d", number)
    {end}

log.configure(log.LogFormat.TEXT)
asyncio.run(main())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = [line for line in found.stderr.splitlines() if " x line " in line]
    assert [line.rpartition(" ")[2] for line in lines] == ["0", "1", "2"]
