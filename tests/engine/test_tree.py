"""The base-token tree by itself: its events after thousands of random steps, its eviction order."""

from __future__ import annotations

import random

import pytest
from sglang.srt.mem_cache.base_prefix_cache import EvictParams

from ps_sglang.engine.tree.base_token_tree import BaseTokenTree
from ps_sglang.events.messages import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent
from tests.engine.bare_tree import bare_tree, held, insert

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prefix = tuple[str | None, tuple[int, ...]]


@pytest.fixture(params=[1, 16], ids=["page 1", "page 16"])
def page(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def tree(page: int) -> BaseTokenTree:
    return bare_tree(page)


def follow(blocks: dict[int, Prefix], events: list[KvEvent]) -> None:
    """What a mirror of the tree makes of its events; each must fit those before it."""
    for event in events:
        if isinstance(event, AllBlocksCleared):
            blocks.clear()
        elif isinstance(event, BlockRemoved):
            for block in event.block_hashes:
                del blocks[block]
        elif isinstance(event, BlockStored):
            assert len(event.token_ids) == len(event.block_hashes) * event.block_size
            salt, tokens = event.cache_salt, tuple[int, ...]()
            if event.parent_block_hash is not None:
                parent_salt, tokens = blocks[event.parent_block_hash]
                assert parent_salt == salt
            for index, block in enumerate(event.block_hashes):
                start = index * event.block_size
                tokens += tuple(event.token_ids[start : start + event.block_size])
                assert block not in blocks
                blocks[block] = salt, tokens


def test_events_tell_the_tree(tree: BaseTokenTree, page: int) -> None:
    """Shared stems that split nodes, tenants, full pools, flushes: events against nodes."""
    source = random.Random(5)
    stems = [[source.randrange(50) for _ in range(1024)] for _ in range(4)]
    blocks: dict[int, Prefix] = {}
    for step in range(2000):
        stem = source.choice(stems)
        ids = stem[: source.randrange(0, 640)] + [source.randrange(50) for _ in range(64)]
        ids = ids[: len(ids) // page * page]
        salt = source.choice((None, None, "x", "y"))
        if source.random() < 0.01:
            tree.token_to_kv_pool_allocator.clear()
            tree.reset()
        else:
            insert(tree, ids, salt)
            assert held(tree, ids) == len(ids) or salt is not None
        follow(blocks, tree.take_events())
        if step % 50 == 49:
            told = dict(blocks)
            tree.republish()
            follow(blocks, tree.take_events())
            assert told == blocks
            assert len(blocks) * page == tree.total_size()[0]
    assert {salt for salt, _ in blocks.values()} == {None, "x", "y"}


def test_equal_prefixes_have_equal_names(page: int, tree: BaseTokenTree) -> None:
    """Whatever the nodes are cut into, and never across tenants."""
    ids = list(range(64))
    insert(tree, ids[:32])
    insert(tree, ids)
    first = [block for event in tree.take_events() for block in event.block_hashes]
    tree.token_to_kv_pool_allocator.clear()
    tree.reset()
    tree.take_events()
    insert(tree, ids)
    (whole,) = tree.take_events()
    assert whole.block_hashes == first
    insert(tree, ids, "x")
    (tenants,) = tree.take_events()
    assert not set(tenants.block_hashes) & set(first)
    assert len(first) == 64 // page


def test_prefixes_without_a_name_for_the_gateway_are_not_told(tree: BaseTokenTree) -> None:
    insert(tree, list(range(64)), extra="key")
    tree.republish()
    assert tree.take_events() == [AllBlocksCleared()]


def test_eviction_order(tree: BaseTokenTree) -> None:
    """Released, the usual by age, pinned; a node that was used since its release is usual."""
    prompts = {name: [number] * 512 for number, name in enumerate(("c", "p", "u", "r", "s"))}
    turns = {}
    for turn, (name, ids) in enumerate(prompts.items()):
        turns[name] = insert(tree, ids)
        tree.conversations.reached(name, turn, turns[name])
    tree.conversations.pin("p")
    for name in "rs":
        tree.conversations.release(name, len(prompts))
    assert held(tree, prompts["s"]) == 512
    order: list[str] = []
    for _ in prompts:
        before = {name for name in prompts if _is_there(tree, turns[name])}
        tree.evict(EvictParams(num_tokens=512))
        order += before - {name for name in prompts if _is_there(tree, turns[name])}
    assert order == ["r", "c", "u", "s", "p"]


def test_a_request_under_way_at_the_end_of_its_conversation_leaves_released_pages(
    tree: BaseTokenTree,
) -> None:
    first, second = [1] * 512, [2] * 512
    tree.conversations.reached("other", 1, insert(tree, first))
    tree.conversations.release("ended", 3)
    tree.conversations.reached("ended", 2, insert(tree, second))
    tree.evict(EvictParams(num_tokens=512))
    assert (held(tree, first), held(tree, second)) == (512, 0)
    tree.conversations.reached("ended", 4, insert(tree, second))
    tree.evict(EvictParams(num_tokens=512))
    assert (held(tree, first), held(tree, second)) == (0, 512)


def test_forgotten_conversations_leave_no_pins(tree: BaseTokenTree) -> None:
    tree.conversations._most = 2
    nodes = [insert(tree, [number] * 64) for number in range(3)]
    for number, node in enumerate(nodes):
        tree.conversations.reached(str(number), number, node)
        tree.conversations.pin(str(number))
    pins = [tree.tree_core.node_by_id(node).hint_marks.pins for node in nodes]
    assert pins == [0, 1, 1]


def _is_there(tree: BaseTokenTree, node: int) -> bool:
    try:
        tree.tree_core.node_by_id(node)
    except KeyError:
        return False
    return True
