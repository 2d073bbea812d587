"""Portable CPU platform: SGLang's real engine on any x86-64 or arm64 machine without a GPU.

SGLang's own CPU engine wants AMX and `sgl_kernel`; this one uses the native PyTorch
forwards, so it runs anywhere PyTorch does. On a machine with an accelerator, or when
ps_sglang is not enabled, `activate` declines and SGLang chooses as it always does.
"""

from __future__ import annotations

import os

from ps_sglang.engine.settings import is_enabled


def activate() -> str | None:
    """Entry point of group `sglang.srt.platforms`: the platform's class, or None to decline."""
    if not is_enabled(os.environ) or _has_accelerator():
        return None
    # SGLang compiles a few small sampling functions; on a CPU that costs a C++ compiler and
    # seconds per shape. Read when torch._dynamo is first imported, which is later than this.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    return "ps_sglang.engine.cpu_platform.PortableCpuPlatform"


def _has_accelerator() -> bool:
    import torch

    return bool(torch.accelerator.is_available())
