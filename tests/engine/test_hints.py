"""What agent programs say of a conversation decides what is evicted first, and what runs first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from ps_sglang.events.messages import Pin, Release
from ps_sglang.priority import encode_priority
from tests.engine.both_legs import ask
from tests.engine.served import Launch, Models, Served
from tests.engine.tree_mirror import TreeMirror
from tests.support.engine_client import assert_conserved, flush, queues

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]
POOL = 1536
LENGTH = 400
# Less than SGLang keeps free for each running request, so that four find room in one pool.
RESERVE = ("--num-reserved-decode-tokens", "16")


@pytest.fixture(scope="module")
def served(llama: Models, launch: Launch) -> Served:
    flags = ("--page-size", "16", "--max-total-tokens", str(POOL), *RESERVE)
    return launch(llama, "a", engine_args=(*flags, "--chunked-prefill-size", "16"))


@pytest.fixture(scope="module", params=["prefill-0", "decode-a"])
def tree(request: pytest.FixtureRequest, served: Served) -> Iterator[TreeMirror]:
    (worker,) = [spec for spec in served.cluster.plan.workers if spec.name == request.param]
    mirror = TreeMirror(worker.events, served.cluster.key)
    yield mirror
    mirror.close()


@pytest.fixture
def conversations(
    served: Served, tree: TreeMirror, prompts: Prompts
) -> Iterator[dict[str, list[int]]]:
    """Three conversations, the oldest first, in trees that hold nothing else."""
    flush(served.cluster)
    named = dict(zip(("old", "middle", "new"), prompts(3, LENGTH + 1), strict=True))
    for session, ids in named.items():
        ask(served.cluster, "a", ids, session_id=session)
    yield named
    assert_conserved(served.cluster)


def held(tree: TreeMirror, ids: list[int]) -> int:
    """Leading tokens of a prompt that the worker's tree holds."""
    tree.resynchronize()
    there = [tokens for _, tokens in tree.prefixes() if list(tokens) == ids[: len(tokens)]]
    return max(map(len, there), default=0)


def crowd(served: Served, prompts: Prompts, length: int) -> None:
    ask(served.cluster, "a", prompts(1, length + 1)[0], 1)


def test_without_hints_the_oldest_goes(
    served: Served, tree: TreeMirror, conversations: dict[str, list[int]], prompts: Prompts
) -> None:
    crowd(served, prompts, LENGTH)
    held_tokens = [held(tree, ids) for ids in conversations.values()]
    assert held_tokens[0] < LENGTH
    assert held_tokens[1:] == [LENGTH, LENGTH]


def test_a_released_conversation_goes_first(
    served: Served, tree: TreeMirror, conversations: dict[str, list[int]], prompts: Prompts
) -> None:
    tree.ask(Release("new"))
    crowd(served, prompts, LENGTH)
    held_tokens = [held(tree, ids) for ids in conversations.values()]
    assert held_tokens[:2] == [LENGTH, LENGTH]
    assert held_tokens[2] < LENGTH


def test_a_release_spares_what_others_go_on_from(
    served: Served, tree: TreeMirror, conversations: dict[str, list[int]], prompts: Prompts
) -> None:
    """The new conversation branches off the middle one; only its own turn is released."""
    stem = conversations["middle"][: LENGTH // 2]
    branch = stem + prompts(1, 97)[0]
    ask(served.cluster, "a", branch, session_id="branch")
    assert held(tree, branch) == len(branch) // 16 * 16
    tree.ask(Release("branch"))
    crowd(served, prompts, POOL - 3 * LENGTH - 32)
    held_tokens = [held(tree, ids) for ids in (*conversations.values(), branch)]
    assert held_tokens[:3] == [LENGTH, LENGTH, LENGTH]
    assert LENGTH // 2 // 16 * 16 <= held_tokens[3] < len(branch) // 16 * 16


def test_a_released_conversation_that_goes_on_stays(
    served: Served, tree: TreeMirror, conversations: dict[str, list[int]], prompts: Prompts
) -> None:
    tree.ask(Release("new"))
    longer = conversations["new"] + prompts(1, 32)[0]
    ask(served.cluster, "a", longer, session_id="new")
    crowd(served, prompts, LENGTH)
    assert held(tree, conversations["new"]) == LENGTH
    assert held(tree, conversations["old"]) < LENGTH


def test_a_pinned_conversation_goes_last(
    served: Served, tree: TreeMirror, conversations: dict[str, list[int]], prompts: Prompts
) -> None:
    tree.ask(Pin("old", 600))
    for _ in range(4):
        crowd(served, prompts, LENGTH)
    assert held(tree, conversations["old"]) == LENGTH
    assert held(tree, conversations["new"]) < LENGTH
    tree.ask(Release("old"))
    crowd(served, prompts, LENGTH)
    assert held(tree, conversations["old"]) < LENGTH


def test_a_pin_holds_what_the_conversation_adds(
    served: Served, tree: TreeMirror, conversations: dict[str, list[int]], prompts: Prompts
) -> None:
    tree.ask(Pin("old", 600))
    longer = conversations["old"] + prompts(1, 64)[0]
    ask(served.cluster, "a", longer, session_id="old")
    for _ in range(4):
        crowd(served, prompts, LENGTH)
    assert held(tree, longer) == len(longer) // 16 * 16
    tree.ask(Release("old"))


def test_a_full_pool_evicts_what_is_pinned(
    served: Served, tree: TreeMirror, conversations: dict[str, list[int]], prompts: Prompts
) -> None:
    for session in conversations:
        tree.ask(Pin(session, 600))
    crowd(served, prompts, POOL - LENGTH)
    assert sum(held(tree, ids) for ids in conversations.values()) <= LENGTH
    for session in conversations:
        tree.ask(Release(session))


def test_a_pin_ends_by_itself(
    served: Served, tree: TreeMirror, conversations: dict[str, list[int]], prompts: Prompts
) -> None:
    """However long that takes; the test's own limit ends one that never does."""
    tree.ask(Pin("old", 0.001))
    while held(tree, conversations["old"]) == LENGTH:
        crowd(served, prompts, LENGTH)


@pytest.mark.parametrize(
    ("worker", "queue", "ahead", "length"),
    [(0, "waiting", 800, 200), (1, "prealloc_ready", 1200, 1200)],
    ids=["waiting for the prefill worker", "waiting for room on the decode worker"],
)
def test_a_higher_priority_runs_first(
    served: Served,
    conversations: dict[str, list[int]],
    prompts: Prompts,
    worker: int,
    queue: str,
    ahead: int,
    length: int,
) -> None:
    """Three come while another one is being prefilled; the worker takes up the last one first.

    A fast worker can be done with the first before all three wait: then they come again.
    """
    here, key = served.cluster.plan.workers[worker], served.cluster.key
    priorities = (encode_priority(-1, 9), 0, encode_priority(5, 0))
    waiting, order = 0, [0]
    while waiting != len(priorities):
        flush(served.cluster)
        first = prompts(1, ahead + 1)[0]
        with (
            closing(TreeMirror(served.cluster.plan.workers[0].events, key)) as tree,
            closing(TreeMirror(here.events, key)) as mirror,
            ThreadPoolExecutor(4) as pool,
        ):
            leader = pool.submit(ask, served.cluster, "a", first, 1)
            tree.wait_for(first[:16])
            futures = []
            for number, there in enumerate(priorities, start=1):
                ids = prompts(1, length + 1)[0]
                futures.append(pool.submit(ask, served.cluster, "a", ids, 1, priority=there))
                waiting = 0
                while waiting != number and not leader.done():
                    waiting = queues(here.url)[queue]
            records = [mirror.span(one.result()[0]) for one in futures]
        began = [one.began + one.queue for one in records]
        order = sorted(range(len(began)), key=began.__getitem__)
    assert order == [2, 1, 0]
