"""A full disk, for the folder of logs."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from benchmarks.faults.scene import Fault, Scene

_SIZE: Final = "64m"
_FULL_S: Final = 5.0
_CHUNK: Final = bytes(1 << 16)


def no_small_disk() -> str | None:
    """Why no disk can be filled without harm, if that is so."""
    if os.geteuid() == 0 and shutil.which("mount"):
        return None
    return "a disk that may be filled up is a tmpfs, and mounting one needs root"


@contextmanager
def log_folder(folder: Path) -> Iterator[Path]:
    """A folder for logs, on a small disk of its own where that can be had."""
    folder.mkdir()
    mounted = False
    if no_small_disk() is None:
        command = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(folder)]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=False)


class FullDisk(Fault):
    """No byte more can be written to the folder of logs, and then again."""

    async def inject(self, scene: Scene) -> None:
        if not await asyncio.to_thread(os.path.ismount, scene.system.logs):
            raise AssertionError(f"{scene.system.logs} is not a disk of its own")
        with suppress(OSError), self._filler(scene).open("wb", buffering=0) as file:
            while file.write(_CHUNK):
                pass
        await asyncio.sleep(_FULL_S)

    async def heal(self, scene: Scene) -> None:
        self._filler(scene).unlink(missing_ok=True)

    def _filler(self, scene: Scene) -> Path:
        return scene.system.logs / "filler"
