"""Flags of SGLang that run what others send, or what a model brings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ps_sglang.errors import UsageError
from ps_sglang.launch import flag_check
from ps_sglang.launch.args import parse_args
from ps_sglang.launch.command_lines import check_flags
from ps_sglang.launch.prepare import check_model_roots
from ps_sglang.launch.spec import ClusterSpec
from ps_sglang.launch.unsafe_flags import RUNS_CODE, UNSAFE, code_warnings

SPEC = ClusterSpec("base", ("a",))


@pytest.mark.parametrize("flag", UNSAFE)
@pytest.mark.parametrize("role", ["engine_args", "prefill_engine_args", "decode_engine_args"])
def test_what_runs_what_clients_send_needs_that_the_user_insists(flag: str, role: str) -> None:
    kind = next(one["kind"] for one in flag_check._table() if flag in one["names"])
    words: dict[str, Any] = {role: (flag,) if kind == "switch" else (flag, "1")}
    spec = replace(SPEC, **words)
    with pytest.raises(UsageError, match=f"{flag} is refused, as .*--allow-unsafe admits it"):
        check_flags(spec)
    assert flag in getattr(check_flags(replace(spec, allow_unsafe=True)), role)


@pytest.mark.parametrize("words", [("--load-format", "remote"), ("--load-format=remote_instance",)])
def test_weights_that_nobody_compares(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="--load-format is refused, as it takes weights"):
        check_flags(replace(SPEC, engine_args=words))
    assert check_flags(replace(SPEC, engine_args=("--load-format", "auto"))).engine_args


def test_an_abbreviation_is_the_flag() -> None:
    with pytest.raises(UsageError, match="--enable-custom-logit-processor is refused"):
        check_flags(replace(SPEC, engine_args=("--enable-custom-logit",)))


def test_what_models_bring_is_told() -> None:
    assert not list(code_warnings({"prefill-0": ("--dtype", "float32")}))
    lines = list(
        code_warnings(
            {
                "prefill-0": ("--trust-remote-code",),
                "decode-a": ("-x", "--trust-remote-code"),
            }
        )
    )
    assert lines == [
        "--trust-remote-code on prefill-0, decode-a: Python files in the models' folders run in "
        "the workers"
    ]
    for flag in (*RUNS_CODE, *UNSAFE):
        assert list(code_warnings({"w": (flag, "x")}))


def test_workers_keys_are_not_given_by_flags() -> None:
    for flag in ("--api-key", "--admin-api-key"):
        with pytest.raises(UsageError, match=f"{flag} cannot be passed through; workers "):
            check_flags(replace(SPEC, engine_args=(flag, "x")))


def test_the_launchers_own_flags(tmp_path: Path) -> None:
    words = ["--prefill", "base", "--decoders", "a", "--model-root", "/x", "--model-root", "/y"]
    spec = parse_args([*words, "--cluster-key-file", "k", "--allow-unsafe", "--admin-port", "9"])
    assert spec.model_roots == (Path("/x"), Path("/y"))
    assert (spec.cluster_key_file, spec.allow_unsafe, spec.admin_port) == (Path("k"), True, 9)
    with pytest.raises(UsageError, match="--admin-port is the gateway's"):
        parse_args([*words, "--join", "http://h:1", "--admin-port", "9"])
    with pytest.raises(UsageError, match="--model-root /x/nowhere is no folder"):
        check_model_roots((tmp_path, Path("/x/nowhere")))
