"""Several gateway processes under a launcher: they come up, come back and leave nothing."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import psutil
import pytest

from ps_sglang.gateway_http import call
from tests.support.processes import Launcher


def gateway_process(launcher: Launcher, config: str) -> psutil.Process:
    """The process of the gateway that has this file for its configuration."""
    below = psutil.Process(launcher.process.pid).children(recursive=True)
    (found,) = (one for one in below if one.cmdline()[-1:] and one.cmdline()[-1].endswith(config))
    return found


@pytest.mark.timeout(120)
def test_each_process_of_a_gateway_comes_back(tiny: dict[str, Path], tmp_path: Path) -> None:
    words = ("--gateway-only", "--gateway-processes", "2", "--port", "0")
    logs = ("--log-dir", str(tmp_path / "logs"))
    launcher = Launcher("--prefill", str(tiny["base"]), *words, *logs, temporary=tmp_path / "tmp")
    try:
        ready = re.search(r"ready (http://\S+)", launcher.wait_for("ready http"))
        assert ready
        for name in ("gateway-1", "gateway"):
            gateway_process(launcher, f"/{name}.json").kill()
            launcher.wait_for(f"{name} is back")
            for _ in range(8):  # whichever process it meets
                assert call(f"{ready[1]}/workers", timeout_s=10)["workers"] == []
        launcher.process.send_signal(signal.SIGTERM)
        assert launcher.end() == 0
    finally:
        launcher.process.kill()
    assert list((tmp_path / "tmp").iterdir()) == []
