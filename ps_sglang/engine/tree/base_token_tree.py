"""A radix cache keyed on base-model tokens, registered with SGLang as `base-token`.

On a decode worker the stock tree would also keep what the decoder computed (the generated
tokens, and from the boundary token on every position). This one stops at the base prefix on
every path into it (finish, abort, retraction, chunks; invariant I2) and never offers more than
the base prefix of the request that asks (I1). The key is SGLang's own: token ids, the
tenant's `extra_key` and `cache_salt`; no model name is in it (I3).

It also publishes what it holds, and evicts as agent programs hint. Both need the nodes, so
SGLang's core in Python is used, not the one in Rust, as SGLang's own session cache does.
"""

from __future__ import annotations

from typing import Any, Final

from ps_sglang.engine.compat.srt import (
    MatchPrefixParams,
    MatchResult,
    RadixKey,
    TreeCacheBuildContext,
    UnifiedRadixCache,
    create_unified_radix_cache,
    register_radix_cache_backend,
)
from ps_sglang.engine.request_state import base_prefix_len, handoff_state
from ps_sglang.engine.tree.events import TreeEvents
from ps_sglang.engine.tree.hints import Conversations, EvictionOrder

BACKEND_NAME: Final = "base-token"


class BaseTokenTree(UnifiedRadixCache):  # type: ignore[misc]
    """SGLang's unified radix cache, bounded by each request's base prefix."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.conversations = Conversations(self.tree_core.node_by_id)
        self.tree_core.eviction_strategy = EvictionOrder(self.tree_core.eviction_strategy)
        if self.tree_core.kv_events.enabled:
            self.tree_core.kv_events = TreeEvents(self.page_size)

    def match_prefix(self, params: MatchPrefixParams) -> MatchResult:
        """Longest cached prefix of `params.key`, never past the request's base prefix.

        The boundary token may well be cached as base KV (a longer conversation went through
        here); the decoder must still compute it itself.
        """
        if params.req is not None:
            params.key = _limited(params.key, base_prefix_len(params.req))
        return super().match_prefix(params)

    def checkpoint(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        """Insert the request's tokens `[0, up_to)`, cut at its base prefix."""
        super().checkpoint(req, up_to=min(up_to, base_prefix_len(req)), **kwargs)
        if req.session_id is not None and req.last_node is not None:
            number = handoff_state(req).sequence_number
            self.conversations.reached(req.session_id, number, req.last_node)

    def republish(self) -> None:
        """Make the next `take_events` begin with all that the tree holds."""
        self.tree_core.kv_events.record_everything(self.tree_core.root_node)


def _limited(key: RadixKey, limit: int) -> RadixKey:
    if key.limit is None or key.limit > limit:
        key.limit = limit
    return key


def _build(context: TreeCacheBuildContext) -> UnifiedRadixCache:
    context.params.tree_core_backend = "python"
    return create_unified_radix_cache(context, cache_class=BaseTokenTree)


def register() -> None:
    """Make the tree selectable by `--radix-cache-backend base-token`."""
    register_radix_cache_backend(BACKEND_NAME, _build)
