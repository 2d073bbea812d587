"""Every command of README and docs does what it says: it is run, on the demo's models."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ps_sglang.launch import Cluster
from ps_sglang.launch.args import parse_args
from ps_sglang.models.resolve import resolve
from tests.docs.pages import PAGES, ROOT, Block, blocks

PORT = 8000
RUN = [page for page in PAGES if any(block.reason is None for block in blocks(page))]


class Reader:
    """Somebody who goes through a page, in a folder with the models that pages speak of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._serving: Cluster | None = None
        self._arguments: list[str] = []
        for name in ("base", "code", "math"):
            (folder / name).symlink_to(resolve(name).path)
        for name in ("examples", "launch"):
            (folder / name).symlink_to(ROOT / name)

    def run(self, block: Block) -> None:
        if block.launches is not None:
            self._launch(block.launches)
        elif block.language == "python":
            self._call([sys.executable, "-c", block.text])
        else:
            # A refused request must end curl with an error.
            self._call(
                ["bash", "-ec", 'curl() { command curl -sS --fail-with-body "$@"; }\n' + block.text]
            )

    def stop(self) -> None:
        if self._serving is not None:
            self._serving.stop()
            self._serving = None

    def _launch(self, arguments: list[str]) -> None:
        if self._serving is not None and arguments == self._arguments:
            return
        self.stop()
        self._serving = Cluster.start(
            parse_args([*arguments, "--log-dir", str(self.folder / "logs")])
        )
        self._arguments = arguments

    def _call(self, command: list[str]) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        process = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=540,
            env={**os.environ, "PATH": path},
        )  # fmt: skip
        assert process.returncode == 0, f"{command[-1]}\n{process.stdout}\n{process.stderr}"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    before = Path.cwd()
    one = Reader(folder)
    os.chdir(folder)
    yield one
    os.chdir(before)
    one.stop()


def _port_is_free() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", PORT)) != 0


@pytest.mark.engine
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_a_pages_commands_run(page: Path, reader: Reader) -> None:
    if reader._serving is None and not _port_is_free():
        pytest.skip(f"port {PORT}, which the pages name, is taken")
    for block in blocks(page):
        if block.reason is None:
            reader.run(block)
