"""SGLang's flags: defaults, the user's word over them, and what is the launcher's alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ps_sglang.errors import UsageError
from ps_sglang.launch import flags
from ps_sglang.launch.spec import Feed, Role
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
        own = flags.owned(role, NamedModel("m", Path("/m")), 1, 2, 3, "zmq", Feed("x", "y"))
        default = flags.defaults(role, cpu=True, context_length=2048)
        names = [name for name, _ in flags.groups((*own, *flags.merge(default, ())))]
        assert len(names) == len(set(names))
        assert set(names) & set(flags.OWNED) == {name for name, _ in flags.groups(own)}


def test_the_pool_on_a_cpu_holds_one_context_up_to_a_limit() -> None:
    def pool(context_length: int) -> str | None:
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
