"""Choice of workers, without HTTP."""

import pytest

from ps_sglang.gateway.config import DecodeWorker, GatewayConfig, PrefillWorker
from ps_sglang.gateway.rendering import render_chat, render_prompt
from ps_sglang.gateway.routing import (
    BLOCK_CHARACTERS,
    UNREACHABLE_SECONDS,
    PrefixIndex,
    Prompt,
    Router,
)


def config(prefill: int = 2, replicas: int = 2) -> GatewayConfig:
    return GatewayConfig(
        host="127.0.0.1",
        port=0,
        base="base",
        context_length=100,
        prefill=tuple(PrefillWorker(f"p{i}", f"http://p{i}", "h", i) for i in range(prefill)),
        decode=tuple(
            DecodeWorker(f"{name}{i}", f"http://{name}{i}", name)
            for name in "ab"
            for i in range(replicas)
        ),
    )


def prompt(blocks: int, letter: str = "x", salt: str = "") -> Prompt:
    return Prompt(letter * (blocks * BLOCK_CHARACTERS), salt)


def test_a_longer_prompt_goes_where_its_prefix_is() -> None:
    router = Router(config())
    first = router.choose(prompt(4), "a")
    first.release()
    other = router.choose(prompt(4, "y"), "a")
    other.release()
    assert other.prefill != first.prefill
    for longer in (prompt(5), prompt(9)):
        route = router.choose(longer, "a")
        route.release()
        assert route.prefill == first.prefill
    assert (route.held_characters, route.new_characters) == (
        5 * BLOCK_CHARACTERS,
        4 * BLOCK_CHARACTERS,
    )


def test_the_prefix_is_shared_by_all_decoders() -> None:
    router = Router(config())
    first = router.choose(prompt(4), "a")
    first.release()
    second = router.choose(prompt(4), "b")
    assert second.prefill == first.prefill
    assert second.new_characters == 0
    assert second.decode.decoder == "b"


def test_tenants_share_nothing() -> None:
    router = Router(config())
    router.choose(prompt(4, salt="s"), "a").release()
    assert router.choose(prompt(4, salt="t"), "a").held_characters == 0
    assert router.choose(prompt(4, salt="s"), "a").new_characters == 0


def test_a_burst_of_different_prompts_spreads() -> None:
    router = Router(config(prefill=3))
    chosen = [router.choose(prompt(4, letter), "a").prefill.name for letter in "uvwxyz"]
    assert sorted(chosen) == ["p0", "p0", "p1", "p1", "p2", "p2"]


def test_a_burst_of_short_prompts_spreads() -> None:
    router = Router(config())
    chosen = [router.choose(Prompt("hi"), "a").prefill.name for _ in range(4)]
    assert sorted(chosen) == ["p0", "p0", "p1", "p1"]


def test_a_burst_of_one_long_prompt_stays_together() -> None:
    router = Router(config())
    chosen = {router.choose(prompt(40), "a").prefill.name for _ in range(10)}
    assert len(chosen) == 1


def test_a_queue_longer_than_the_prefix_drives_a_prompt_away() -> None:
    router = Router(config())
    router.choose(prompt(2), "a").release()
    busy = router.choose(Prompt(prompt(2).text + "y" * 9000), "a")
    away = router.choose(prompt(3), "a")
    assert away.prefill != busy.prefill
    busy.prefilled()
    away.release()
    back = router.choose(Prompt(prompt(2).text + "y" * 9000), "a")
    assert back.prefill == busy.prefill


def test_idle_workers_take_turns() -> None:
    router = Router(config())
    for _ in range(2):
        turns = []
        for _ in range(2):
            route = router.choose(Prompt("hi"), "a")
            route.release()
            turns.append((route.prefill.name, route.decode.name))
        assert sorted(turns) == [("p0", "a0"), ("p1", "a1")]


def test_the_decode_worker_with_the_least_pending_requests() -> None:
    router = Router(config())
    first = router.choose(Prompt("hi"), "a")
    second = router.choose(Prompt("hi"), "a")
    assert {first.decode.name, second.decode.name} == {"a0", "a1"}
    second.release()
    assert router.choose(Prompt("hi"), "a").decode == second.decode


def test_release_counts_once() -> None:
    router = Router(config(prefill=1, replicas=1))
    route, other = router.choose(prompt(2), "a"), router.choose(prompt(2, "y"), "a")
    assert (router.pending("p0"), router.pending("a0")) == (2, 2)
    route.prefilled()
    assert (router.pending("p0"), router.pending("a0")) == (1, 2)
    route.release()
    route.release()
    assert (router.pending("p0"), router.pending("a0")) == (1, 1)
    other.release()
    assert (router.pending("p0"), router.pending("a0")) == (0, 0)


def test_tried_workers_are_left_out() -> None:
    router = Router(config())
    route = router.choose(Prompt("hi"), "a", {"p0", "a1"})
    assert (route.prefill.name, route.decode.name) == ("p1", "a0")
    assert router.can_choose("a", {"p0", "a0"})
    assert not router.can_choose("a", {"p0", "p1"})
    assert not router.can_choose("a", {"a0", "a1"})
    assert router.can_choose("b", {"a0", "a1"})
    with pytest.raises(LookupError):
        router.choose(Prompt("hi"), "a", {"p0", "p1"})


def test_an_unreachable_worker_is_avoided_for_a_while() -> None:
    now = 0.0
    router = Router(config(), clock=lambda: now)
    router.choose(prompt(4), "a", {"p1"}).release()
    router.mark_unreachable("p0")
    router.mark_unreachable("a0")
    for _ in range(3):
        route = router.choose(prompt(4), "a")
        assert (route.prefill.name, route.decode.name) == ("p1", "a1")
        route.release()
    now = UNREACHABLE_SECONDS
    router.forget("p1")
    again = router.choose(prompt(4), "a", {"p1"})
    assert again.held_characters == 0, "it lost its cache when it went away"


def test_unreachable_workers_are_tried_when_there_is_no_other() -> None:
    router = Router(config(prefill=1, replicas=1))
    router.mark_unreachable("p0")
    router.mark_unreachable("a0")
    assert router.choose(Prompt("hi"), "a").prefill.name == "p0"


def test_the_index_drops_the_least_recently_used_blocks_ends_first() -> None:
    index = PrefixIndex(capacity=4)
    old, new = prompt(3).blocks, prompt(3, "y").blocks
    index.add(old)
    index.add(new)
    assert len(index) == 4
    assert (index.held(new), index.held(old)) == (3, 1)
    index.clear()
    assert index.held(new) == 0


def test_block_hashes_are_chained_and_salted() -> None:
    whole = Prompt("a" * BLOCK_CHARACTERS + "b" * BLOCK_CHARACTERS + "c" * 10)
    assert len(whole.blocks) == 2
    assert prompt(2).blocks[0] != prompt(2).blocks[1]
    assert whole.blocks[0] == prompt(1, "a").blocks[0]
    assert whole.blocks[1] != prompt(2, "b").blocks[1]
    assert prompt(1, salt="s").blocks != prompt(1).blocks


def test_a_continued_prompt_renders_as_a_continuation() -> None:
    chat = [{"role": "user", "content": "x"}, {"content": "y", "role": "assistant"}]
    tools = [{"type": "function"}]
    assert render_chat(chat, tools).startswith(render_chat(chat[:1], tools))
    assert not render_chat(chat, tools).startswith(render_chat(chat[:1], None))
    assert render_chat([{"role": "user", "content": "x"}], None) == render_chat(
        [{"content": "x", "role": "user"}], None
    )
    assert render_prompt([1, 23, 4]).startswith(render_prompt([1, 23]))
    assert not render_prompt([1, 23]).startswith(render_prompt([1, 2]))
    assert render_prompt("text") == "text"
