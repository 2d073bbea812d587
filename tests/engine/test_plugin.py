"""The plugin: inert unless asked for, and loud when SGLang is not the one it was written for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ps_sglang.engine import platform, settings
from ps_sglang.engine.hooking import Hook
from ps_sglang.engine.hooks import HOOKS, incompatibilities

LOOK = """
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.arg_groups.choices import DISAGG_TRANSFER_BACKEND_CHOICES as transfer
from sglang.srt.mem_cache.registry import registered_radix_cache_backends
from sglang.srt.platforms import current_platform
from sglang.srt.plugins.hook_registry import HookRegistry
ours = [s for hooks in HookRegistry._hooks.values() for *_, s in hooks if s[0] == "ps_sglang"]
print(len(ours), "zmq" in transfer, registered_radix_cache_backends(),
      type(current_platform).__name__)
"""


def look(**environ: str) -> subprocess.CompletedProcess[str]:
    """What SGLang has loaded in a fresh process."""
    return subprocess.run(
        [sys.executable, "-c", LOOK],
        capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **environ},
    )  # fmt: skip


def test_inert_when_not_enabled() -> None:
    assert look().stdout.split()[:3] == ["0", "False", "[]"]
    assert "Portable" not in look(PS_SGLANG_ENABLE="0").stdout


def test_active_when_enabled() -> None:
    modules = look(PS_SGLANG_ENABLE="1").stdout.split()
    assert modules == [str(len(HOOKS)), "True", "['base-token']", "PortableCpuPlatform"]


def test_platform_stays_out_of_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside an accelerator, and where the plugin is off, SGLang chooses its platform itself."""
    import torch

    monkeypatch.setenv(settings.ENABLE, "1")
    assert platform.activate() is not None
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert platform.activate() is None
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delenv(settings.ENABLE)
    assert platform.activate() is None


def test_a_bad_switch_ends_the_process() -> None:
    """SGLang logs and ignores a plugin's exception; an engine without hooks would be wrong."""
    process = look(PS_SGLANG_ENABLE="yes")
    assert process.returncode != 0
    assert "PS_SGLANG_ENABLE='yes'" in process.stderr


def test_another_sglang_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from ps_sglang.engine import compat

    monkeypatch.setattr(compat, "SGLANG_VERSION", "0.0.1")
    with pytest.raises(SystemExit, match=r"hooks SGLang 0\.0\.1, but 0\.5\.23 is installed"):
        compat.require_supported_sglang()


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.target.rsplit(".", 1)[1])
def test_hooked_function_is_the_one_written_for(hook: Hook) -> None:
    assert incompatibilities([hook]) == []


def test_a_changed_function_is_named() -> None:
    def nothing() -> None: ...

    removed = Hook("sglang.srt.managers.scheduler.Scheduler.gone", "after", nothing, ())
    changed = Hook(
        "sglang.srt.managers.scheduler.Scheduler.on_idle", "after", nothing, ("self", "now")
    )
    first, second = incompatibilities([removed, changed])
    assert "Scheduler.gone does not exist" in first
    assert "on_idle takes ('self',), the hook was written for ('self', 'now')" in second


def test_switch_is_read_strictly() -> None:
    assert settings.is_enabled({settings.ENABLE: "1"})
    assert not settings.is_enabled({})
    with pytest.raises(SystemExit, match="set it to 1"):
        settings.is_enabled({settings.ENABLE: "on"})
