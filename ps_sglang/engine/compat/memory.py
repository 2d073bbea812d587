"""SGLang's KV pool, for the platform to subclass (0.5.23)."""

from __future__ import annotations

from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

__all__ = ["MHATokenToKVPool"]
