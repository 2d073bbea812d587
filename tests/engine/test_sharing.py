"""What one decoder's turn leaves behind for the next, and what must never be left behind."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import pytest

from tests.engine.served import Launch, Models, Served, kinds
from tests.support.engine_client import assert_conserved, counters, generate, growth
from tests.support.hf_reference import expected

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

Prompts = Callable[[int, int], list[list[int]]]
DECODERS = ("a", "b", "c")


@pytest.fixture(scope="module", params=kinds([16], [1]), ids="page {}".format)
def page(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def served(page: int, llama: Models, launch: Launch) -> Served:
    return launch(llama, *DECODERS, engine_args=("--page-size", str(page)))


def test_conversation_over_three_decoders(served: Served, page: int, prompts: Prompts) -> None:
    """Each turn prefills its new tokens and at most a page; each worker pulls its deltas only.

    43 turns are the median of agents' conversations.
    """
    conversation = prompts(1, 90)[0]
    computed: list[int] = []  # tokens by turn
    prefilled = 0  # tokens of this conversation that the base has seen
    held = dict.fromkeys(DECODERS, 0)  # and that each decode worker has
    turns = list(islice(cycle("abaccb"), 43))
    before = counters(served.cluster)
    for turn, name in enumerate(turns):
        answer = generate(served.cluster, name, conversation, 4)
        want = expected(served.models.base, served.models.decoders[name], conversation, 4)
        assert answer["output_ids"] == want.tokens, f"turn {turn}"
        prefix = len(conversation) - 1
        computed.append(prefix - answer["meta_info"]["cached_tokens"])
        assert 0 <= computed[-1] - (prefix - prefilled) < page
        prefilled = held[name] = prefix
        conversation = conversation + want.tokens + prompts(1, 17)[0]
    after = counters(served.cluster)
    assert growth(before, after, "prefill-0", "prefill_tokens.computed") == sum(computed)
    for name in DECODERS:
        pulled = growth(before, after, f"decode-{name}", "handoff_tokens.pulled")
        assert 0 <= pulled - held[name] <= (page - 1) * turns.count(name)
    assert_conserved(served.cluster)


def test_nothing_of_a_decoder_is_kept(served: Served, page: int, prompts: Prompts) -> None:
    """Invariant I2: a decoder's own KV is gone when its request ends.

    The next prompt repeats what the decoder said. Were its KV in the tree, the worker would
    hold more than the first prompt's base prefix, and the answer would differ from the base's.
    """
    (prompt,) = prompts(1, 70)
    output = generate(served.cluster, "a", prompt, 60)["output_ids"]
    follow_up = prompt + output + prompts(1, 5)[0]
    before = counters(served.cluster)
    answer = generate(served.cluster, "a", follow_up, 12)
    after = counters(served.cluster)
    want = expected(served.models.base, served.models.decoders["a"], follow_up, 12)
    cached = growth(before, after, "decode-a", "handoff_tokens.tree")
    assert cached == (len(prompt) - 1) // page * page
    assert answer["output_ids"] == want.tokens


def test_boundary_token_is_the_decoders_even_where_the_base_has_it(
    served: Served, prompts: Prompts
) -> None:
    """A shorter prompt after a longer one: the tree holds the base's KV of its boundary token."""
    (longer,) = prompts(1, 64)
    shorter = longer[:33]
    generate(served.cluster, "b", longer)
    want = expected(served.models.base, served.models.decoders["b"], shorter)
    assert generate(served.cluster, "b", shorter)["output_ids"] == want.tokens


def test_whole_prefix_needs_no_forward_and_no_handoff(
    served: Served, page: int, prompts: Prompts
) -> None:
    """Both shortcuts, counted: 97 tokens are 96 of base prefix, whole pages of 1 and 16."""
    (ids,) = prompts(1, 97)
    wants = {}
    for name, forward_skips, handoff_skips in (("a", 0, 0), ("a", 1, 1), ("b", 1, 0), ("b", 1, 1)):
        before = counters(served.cluster)
        answer = generate(served.cluster, name, ids)
        after = counters(served.cluster)
        assert growth(before, after, "prefill-0", "prefill_skipped") == forward_skips
        assert growth(before, after, f"decode-{name}", "handoff_skipped") == handoff_skips
        assert answer["meta_info"]["cached_tokens"] == (96 if forward_skips else 0)
        wants[name] = expected(served.models.base, served.models.decoders[name], ids)
        assert answer["output_ids"] == wants[name].tokens


def test_no_tokens_asked_caches_the_prefix(served: Served, prompts: Prompts) -> None:
    """SGLang programs do so before they fork; the fork's requests then need no handoff."""
    (ids,) = prompts(1, 97)
    nothing = generate(served.cluster, "c", ids, 0)
    assert (nothing["output_ids"], nothing["meta_info"]["completion_tokens"]) == ([], 0)
    before = counters(served.cluster)
    answer = generate(served.cluster, "c", ids)
    after = counters(served.cluster)
    assert growth(before, after, "decode-c", "handoff_skipped") == 1
    want = expected(served.models.base, served.models.decoders["c"], ids)
    assert answer["output_ids"] == want.tokens
    assert_conserved(served.cluster)


def test_tenants_do_not_share(served: Served, prompts: Prompts) -> None:
    """Invariant I3: the key has the tenant's salt in it, and no decoder's name."""
    (ids,) = prompts(1, 33)
    for salt, name, cached in (("x", "a", 0), ("y", "a", 0), ("x", "b", 32), (None, "b", 0)):
        options: dict[str, Any] = {"cache_salt": salt} if salt else {}
        answer = generate(served.cluster, name, ids, **options)
        assert answer["meta_info"]["cached_tokens"] == cached


def test_base_prefix_survives_eviction_as_itself(served: Served, prompts: Prompts) -> None:
    """Far more prompts than the pools hold: evicted prefixes are pulled or computed again (I4)."""
    first, *others = prompts(9, 900)
    want = expected(served.models.base, served.models.decoders["c"], first, 8)
    for ids in (first, *others, first):
        answer = generate(served.cluster, "c", ids, 8)
        if ids is first:
            assert answer["output_ids"] == want.tokens
    assert_conserved(served.cluster)
