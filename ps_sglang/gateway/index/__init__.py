"""What the workers hold of a prompt: an index fed by their KV events, and an estimate."""

from __future__ import annotations

from ps_sglang.gateway.index.cache_index import CacheIndex, CacheSource
from ps_sglang.gateway.index.collector import IndexMetrics
from ps_sglang.gateway.index.lookup import NO_MATCH, PrefixMatch
from ps_sglang.gateway.index.prompt import Prompt
from ps_sglang.gateway.index.prompts import Prompts

__all__ = [
    "NO_MATCH",
    "CacheIndex",
    "CacheSource",
    "IndexMetrics",
    "PrefixMatch",
    "Prompt",
    "Prompts",
]
