"""What a worker publishes is what its tree holds, whatever happened to it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.engine.served import Launch, Models, Served, kinds
from tests.engine.tree_mirror import TreeMirror, mirroring
from tests.support.engine_client import assert_conserved, flush, generate, together

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]
Mirrors = dict[str, TreeMirror]


@pytest.fixture(scope="module", params=kinds([16], [1]), ids="page {}".format)
def served(request: pytest.FixtureRequest, llama: Models, launch: Launch) -> Served:
    # Pools that a few prompts fill, so that pages are evicted and requests retracted.
    flags = ("--page-size", str(request.param), "--max-total-tokens", "1536")
    return launch(llama, "a", "b", engine_args=(*flags, "--chunked-prefill-size", "64"))


@pytest.fixture(scope="module")
def mirrors(served: Served) -> Iterator[Mirrors]:
    with mirroring(served.cluster) as caches:
        yield caches


def test_mirrors_equal_trees_after_random_work(
    served: Served, mirrors: Mirrors, prompts: Prompts
) -> None:
    """Shared stems of any length, tenants, evictions; compared with the tree's own nodes."""
    source = random.Random(3)
    stems = prompts(6, 200)
    for _ in range(6):
        calls = []
        for _ in range(6):
            stem = source.choice(stems)
            ids = stem[: source.randrange(2, len(stem))] + prompts(1, source.randrange(1, 90))[0]
            salt = {"cache_salt": source.choice("xy")} if source.random() < 0.4 else {}
            decoder, tokens = source.choice("ab"), source.randrange(1, 40)
            calls.append(partial(generate, served.cluster, decoder, ids, tokens, **salt))
        together(calls)
        for name, mirror in mirrors.items():
            published = mirror.resynchronize()
            assert published == mirror.prefixes(), name
    for mirror in mirrors.values():
        assert mirror.removed
        assert mirror.salts == {None, "x", "y"}
    assert_conserved(served.cluster)


def test_prompts_are_published_and_no_output(
    served: Served, mirrors: Mirrors, prompts: Prompts
) -> None:
    (ids,) = prompts(1, 97)
    generate(served.cluster, "a", ids)
    assert_conserved(served.cluster)
    for name in ("prefill-0", "decode-a"):
        published = mirrors[name].resynchronize()
        of_this = [tokens for _, tokens in published if tokens[0] == ids[0]]
        assert max(of_this, key=len) == tuple(ids[:96])
    assert not [t for _, t in mirrors["decode-b"].resynchronize() if t[0] == ids[0]]


def test_a_flush_is_published(served: Served, mirrors: Mirrors) -> None:
    assert all(mirror.prefixes() for mirror in mirrors.values())
    flush(served.cluster)
    for mirror in mirrors.values():
        assert mirror.resynchronize() == set()
        assert mirror.prefixes() == set()
