"""SGLang's flags: defaults, the user's word over them, and what is the launcher's alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ps_sglang.errors import UsageError
from ps_sglang.launch import flag_check, flags
from ps_sglang.launch.spec import EventPorts, Role
from ps_sglang.models.resolve import NamedModel

DEFAULT = {"--device": "cpu", "--sleep-on-idle": None}


def test_without_user_flags_the_defaults_stand() -> None:
    assert flags.merge(DEFAULT, ()) == ("--device", "cpu", "--sleep-on-idle")


@pytest.mark.parametrize("user", [("--device", "cuda"), ("--device=cuda",)])
def test_a_user_flag_replaces_the_default(user: tuple[str, ...]) -> None:
    assert flags.merge(DEFAULT, user) == ("--sleep-on-idle", *user)


def test_a_default_can_be_taken_away() -> None:
    assert flags.merge(DEFAULT, ("--no-sleep-on-idle", "--x", "1")) == (
        "--device",
        "cpu",
        "--x",
        "1",
    )


def test_a_no_flag_of_sglangs_own_is_passed_on() -> None:
    assert flags.merge({}, ("--no-such-default",)) == ("--no-such-default",)


@pytest.mark.parametrize("flag", sorted(flags.OWNED))
def test_owned_flags_are_refused_by_name(flag: str) -> None:
    with pytest.raises(UsageError, match=f"here: {flag} cannot be passed through; "):
        flags.refuse_owned(("--page-size", "1", f"{flag}=x"), "here")


def test_a_word_without_a_flag_is_refused() -> None:
    with pytest.raises(UsageError, match="'stray' belongs to no flag"):
        flags.refuse_owned(("stray", "--page-size", "1"), "here")


def test_the_launcher_sets_no_flag_twice() -> None:
    for role in Role:
        own = flags.owned(role, NamedModel("m", Path("/m")), 1, 2, 3, "zmq", EventPorts("x", "y"))
        default = flags.defaults(role, cpu=True, context_length=2048)
        names = [name for name, _ in flags.groups((*own, *flags.merge(default, ())))]
        assert len(names) == len(set(names))
        assert set(names) & set(flags.OWNED) == {name for name, _ in flags.groups(own)}


def test_the_pool_on_a_cpu_holds_one_context_up_to_a_limit() -> None:
    def pool(context_length: int) -> str | tuple[str, ...] | None:
        flag_map = flags.defaults(Role.DECODE, cpu=True, context_length=context_length)
        return flag_map["--max-total-tokens"]

    assert pool(2048) == "4096"
    assert pool(131072) == "16384"
    assert "--max-total-tokens" not in flags.defaults(Role.DECODE, cpu=False, context_length=2048)


@pytest.mark.parametrize(
    ("words", "value"),
    [((), None), (("--a", "1", "--a=2"), "2"), (("--a", "1", "2"), "1 2"), (("--ab", "1"), None)],
)
def test_value_of_takes_the_last(words: tuple[str, ...], value: str | None) -> None:
    assert flags.value_of(words, "--a") == value


@pytest.mark.parametrize(
    ("words", "full"),
    [
        ("--page-size 16 --tp 2", "--page-size 16 --tp-size 2"),
        ("--max-total 1k --dtype=float16", "--max-total-tokens 1k --dtype=float16"),
        ("--random-seed -1 --enable-metrics", "--random-seed -1 --enable-metrics"),
        ("--no-sleep-on-idle --context-length 8Ki", "--no-sleep-on-idle --context-length 8Ki"),
        ("--no-lora-strict-loading", "--no-lora-strict-loading"),
        ("--cuda-graph-bs-decode 1 2 4", "--cuda-graph-bs-decode 1 2 4"),
        ("--attention-backend flashinfer", "--attention-backend flashinfer"),
        ("--preferred-sampling-params {}", "--preferred-sampling-params {}"),
    ],
)
def test_flags_that_sglang_takes_get_their_full_names(words: str, full: str) -> None:
    assert flag_check.checked(words.split(), "here") == tuple(full.split())


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--page-sise 3", "here: SGLang has no flag --page-sise; did you mean --page-size"),
        ("--page-size x", "here: --page-size: invalid int value: 'x'"),
        ("--page-size 1 2", "here: unrecognized arguments: 2"),
        ("--page-size", "here: --page-size: expected one argument"),
        ("--attention-backend banana", "here: --attention-backend: invalid choice: 'banana' .*fa3"),
        ("--mem-fraction-static abc", "here: --mem-fraction-static: invalid float value: 'abc'"),
        ("--context-length 1.5Ki", "here: --context-length: invalid size value: '1.5Ki'"),
        ("--preferred-sampling-params {a", "here: --preferred-sampling-params: invalid JSON"),
        ("--enable-metrics 5", "here: unrecognized arguments: 5"),
        ("--no-sleep-on-idle 3", "here: --no-sleep-on-idle takes no value, not '3'"),
        ("--max 5", "here: SGLang has no flag --max; did you mean --max-"),
        ("-h", "here: '-h' belongs to no flag"),
    ],
)
def test_flags_that_sglang_would_refuse_are_refused_by_name(words: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        flag_check.checked(words.split(), "here")


@pytest.mark.parametrize(
    ("text", "count"), [("8192", 8192), ("8k", 8000), ("8Ki", 8192), ("25.6k", 25600), ("2M", 2e6)]
)
def test_counts_are_read_as_sglang_reads_them(text: str, count: int) -> None:
    assert flag_check.size(text) == count


def test_a_plugin_of_others_may_bring_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    flag_check._parser.cache_clear()
    monkeypatch.setattr(flag_check, "_KNOWN_PLUGINS", frozenset())
    words = ("--attention-backend", "theirs")
    assert flag_check.checked(words, "here") == words
    flag_check._parser.cache_clear()
