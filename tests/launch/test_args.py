"""The command line: what it means, and that each mistake is named in one line."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ps_sglang.errors import UsageError
from ps_sglang.gateway.limits import GatewayLimits
from ps_sglang.launch.args import parse_args
from ps_sglang.launch.spec import ClusterSpec

MODELS = ["--prefill", "base", "--decoders", "a,b"]


def test_defaults_are_those_of_the_spec() -> None:
    assert parse_args(MODELS) == ClusterSpec("base", ("a", "b"))


def test_every_flag_reaches_the_spec() -> None:
    spec = parse_args(
        shlex.split(
            "--prefill x=./m --decoders a, --host ::1 --port 0 --prefill-replicas 2 "
            "--decode-replicas 3 "
            "--transfer-backend nixl --allow-unverified --log-dir logs --ready-timeout 9.5 "
            "--cors-origins 'http://localhost:3000, *' --max-concurrent-requests 1 "
            "--max-queued-requests 2 --max-queued-tokens 3 --request-timeout 4.5 --max-sessions 5 "
            "--api-keys keys.txt --tls-cert c.pem --tls-key c.key"
        )
    )
    assert spec == ClusterSpec(
        prefill="x=./m",
        decoders=("a",),
        host="::1",
        port=0,
        cors_origins=("http://localhost:3000", "*"),
        limits=GatewayLimits(1, 2, 3, 4.5, 5),
        api_keys=Path("keys.txt"),
        tls_cert=Path("c.pem"),
        tls_key=Path("c.key"),
        prefill_replicas=2,
        decode_replicas=3,
        transfer_backend="nixl",
        allow_unverified=True,
        log_dir=Path("logs"),
        ready_timeout_s=9.5,
    )


def test_a_user_may_insist_on_no_keys() -> None:
    spec = parse_args([*MODELS, "--host", "0.0.0.0", "--no-keys"])
    assert (spec.host, spec.no_keys) == ("0.0.0.0", True)


def test_unknown_flags_go_to_the_engine_in_order() -> None:
    spec = parse_args([*MODELS, "--page-size", "16", "--enable-x", "--y=1"])
    assert spec.engine_args == ("--page-size", "16", "--enable-x", "--y=1")


@pytest.mark.parametrize("glue", [False, True])
def test_role_flags_are_split_like_a_shell_does(glue: bool) -> None:
    words = ["--decode-engine-args", "--a 'b c' --d"]
    spec = parse_args(MODELS + (["=".join(words)] if glue else words))
    assert spec.decode_engine_args == ("--a", "b c", "--d")
    assert spec.prefill_engine_args == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--decoders a", "--prefill is missing"),
        ("--prefill a", "--decoders is missing"),
        ("--prefill a --decoders ,", "no decoder given"),
        ("--prefill a --decoders b --port 70000", "--port is 70000, must be 0"),
        ("--prefill a --decoders b --gateway-processes 0", "--gateway-processes is 0, must be at"),
        ("--decoders b --join u --gateway-processes 2", "--gateway-processes is the gateway's"),
        ("--prefill a --decoders b --port x", "--port: invalid int value: 'x'"),
        ("--prefill a --decoders b --prefill-replicas 0", "must be at least 1"),
        ("--prefill a --decoders b --decode-replicas 0", "--decode-replicas is 0, must be at"),
        ("--prefill a --decoders b*0", "decoder b*0: it must have at least 1 worker"),
        ("--prefill a --decoders b --ready-timeout 0", "above 0 seconds"),
        ("--prefill a --decoders b --ready-timeout nan", "above 0 seconds"),
        ("--prefill a --decoders b --max-queued-requests 0", "--max-queued-requests is 0, must"),
        ("--prefill a --decoders b --request-timeout nan", "--request-timeout is nan, must be"),
        ("--prefill a --decoders b --host=", "--host is empty"),
        ("--prefill a --decoders b --host 0.0.0.0", "--host 0.0.0.0 lets other machines in, and"),
        ("--prefill a --decoders b --no-keys --api-keys f", "--no-keys does not go with --api-k"),
        ("--prefill a --decoders b --tls-cert f", "--tls-cert and --tls-key are needed together"),
        ("--prefill a --decoders b --join http://h --api-keys f", "--api-keys is the gateway's"),
        ("--prefill a --decoders b --join http://h --no-keys", "--no-keys is the gateway's"),
        ("--prefill a --decoders b --join http://h --tls-key f", "--tls-key is the gateway's"),
        ("--prefill a --decoders b --join=", "--join is empty"),
        ("--prefill a --decoders b --transfer-backend tcp", "invalid choice: 'tcp'"),
        ("--prefill a --decoders b --decode-engine-args '", "No closing quotation"),
    ],
)
def test_a_mistake_is_one_line(words: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_args(words.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        "--prefill-replicas 2",
        "--decode-replicas 2",
        "--join http://127.0.0.1:8000",
        "--transfer-backend zmq",
        "--prefill-engine-args '--page-size 1'",
        "--decode-engine-args '--page-size 1'",
    ],
)
def test_what_only_several_workers_have_does_not_go_with_one(words: str) -> None:
    flag, *value = shlex.split(words)
    with pytest.raises(UsageError, match=f"^{flag} does not go with --one-worker: "):
        parse_args([*MODELS, "--one-worker", flag, *value])


@pytest.mark.parametrize("command", ["ps_sglang.launch", "ps_sglang.cli"])
def test_help_imports_no_engine(command: str) -> None:
    probe = (
        "import runpy, sys\n"
        f"sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module({command!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'sglang', 'transformers', 'aiohttp'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "usage:" in result.stdout


@pytest.mark.parametrize("origin", ["localhost:3000", "http://page.example/", "HTTP://PAGE"])
def test_what_is_no_origin_of_a_page_is_refused(origin: str) -> None:
    with pytest.raises(UsageError, match=f"CORS origin {origin!r} must be"):
        parse_args([*MODELS, "--cors-origins", origin])


def test_web_pages_are_the_gateways_business() -> None:
    with pytest.raises(UsageError, match="--cors-origins is the gateway's, and --join starts none"):
        parse_args([*MODELS, "--join", "http://127.0.0.1:8000", "--cors-origins", "*"])
