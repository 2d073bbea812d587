"""The base-token tree without an engine around it."""

from __future__ import annotations

from array import array
from typing import Any

import torch
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator, TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.components import ComponentType

from ps_sglang.engine.tree.base_token_tree import BaseTokenTree

POOL = 4096


def bare_tree(page: int) -> BaseTokenTree:
    """A tree with a pool of POOL tokens."""
    kv = MHATokenToKVPool(
        POOL, page_size=page, dtype=torch.float32, head_num=1, head_dim=1, layer_num=1,
        device="cpu", enable_memory_saver=False,
    )  # fmt: skip
    arguments: tuple[Any, ...] = (torch.float32, "cpu", kv, False)
    allocator = (
        TokenToKVPoolAllocator(POOL, *arguments)
        if page == 1
        else PagedTokenToKVPoolAllocator(POOL, page, *arguments)
    )
    return BaseTokenTree(
        CacheInitParams(
            disable=False,
            req_to_token_pool=ReqToTokenPool(8, POOL, "cpu", False),
            token_to_kv_pool_allocator=allocator,
            page_size=page,
            enable_kv_cache_events=True,
            tree_components=(ComponentType.FULL,),
            tree_core_backend="python",
        )
    )


def key(ids: list[int], salt: str | None = None, extra: str | None = None) -> RadixKey:
    return RadixKey(array("q", ids), extra, cache_salt=salt)


def insert(
    tree: BaseTokenTree, ids: list[int], salt: str | None = None, extra: str | None = None
) -> Any:
    """Insert a prompt of whole pages, evicting what must go; the last node's id."""
    allocator = tree.token_to_kv_pool_allocator
    if allocator.available_size() < len(ids):
        tree.evict(EvictParams(num_tokens=len(ids) - allocator.available_size()))
    pages = allocator.alloc(len(ids))
    result = tree.insert(InsertParams(key=key(ids, salt, extra), value=pages))
    return result.last_device_node


def held(tree: BaseTokenTree, ids: list[int]) -> int:
    return int(tree.match_prefix(MatchPrefixParams(key=key(ids))).device_prefix_len)
