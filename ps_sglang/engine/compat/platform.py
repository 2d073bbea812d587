"""SGLang internals that are importable while SGLang resolves its platform."""

from __future__ import annotations

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

__all__ = ["CpuDeviceMixin", "PlatformCapabilities", "PlatformEnum", "SRTPlatform"]
