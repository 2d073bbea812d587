"""The command line of the launcher. Must stay light: `--help` imports no torch and no SGLang."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ps_sglang.errors import UsageError
from ps_sglang.launch.limit_args import LIMITS, add_limits, taken_limits
from ps_sglang.launch.serve import STATUSES
from ps_sglang.launch.shared_args import add_shared, settled
from ps_sglang.launch.spec import ClusterSpec
from ps_sglang.parser import SettingsParser, user_path

_DESCRIPTION: Final = f"""\
Serve several fine-tuned decoders from one shared prefill.

Starts one SGLang prefill worker for the base model, one SGLang decode worker for all LoRA
adapters together and one for each whole model, and a gateway that speaks the OpenAI API and
SGLang's own. Ctrl-C stops it all.
{STATUSES}"""

CHECK_DESCRIPTION: Final = """\
Find the models of a launch and compare every decoder with the base; start nothing.

Takes the whole command line of `ps-sglang launch`. What only a running cluster needs, as its
port, is not looked at. Exit status: 0 the models fit together, 2 they do not."""

_EPILOG: Final = """\
models:
  base                   the demo's base, SmolLM2-135M-Instruct
  code, tools, math      decoders trained on its cache, as `make demo` serves them
  a, b, c                stand-ins: the base plus noise
  PATH                   the folder of a checkpoint, or of a LoRA adapter of the base (peft's
                         format); its last part is the name that clients ask for
  NAME=MODEL             any of these under another name
  ORG/MODEL              a hub id, downloaded once
  MODEL*N                a decoder that is a whole model, with N workers
  A decoder must have been trained on the base's cache, which its prefillshare.json says.
  Adapters share one worker, which also serves the base by its name.

engine flags:
  Every flag that is not listed above goes to SGLang (`python -m sglang.launch_server --help`)
  on all workers, and wins over the launcher's default. Flags for one role go in quotes; they
  win over the common ones. `--no-FLAG` takes away a default, as in --no-sleep-on-idle.

examples:
  {prog} --prefill base --decoders a,b,c
  {prog} --prefill ./qwen3 --decoders math=./m1,code=./c1 --page-size 16
  {prog} --prefill ./qwen3 --decoders math=./adapter1,code=./adapter2 --one-worker
  {prog} --prefill base --decoders a --prefill-replicas 2 \\
      --decode-engine-args "--max-total-tokens 20000 --max-running-requests 16"
  {prog} --spec launch/demo.yaml --port 0
  {prog} --prefill ./qwen3 --decoders math=./m1 --gpus 8x80GB --dry-run
  {prog} --spec launch/ray.yaml --on ray
  {prog} --prefill base --decoders c --join http://127.0.0.1:8000"""

_ROLE_FLAGS: Final = ("--prefill-engine-args", "--decode-engine-args")


def parse_args(
    argv: Sequence[str],
    prog: str = "ps-sglang launch",
    description: str = _DESCRIPTION,
) -> ClusterSpec:
    """The cluster that a command line asks for; `--help` shows `description`.

    Raises UsageError, which says in one line what is wrong with which argument.
    """
    parsed, rest = _parser(prog, description).parse_known_args(glued(argv))
    options = vars(parsed)
    chosen: dict[str, Any] = {}
    if spec_file := options.pop("spec", None):
        from ps_sglang.launch.specfile import read_spec

        chosen = read_spec(spec_file)
    engine_args = (*chosen.get("engine_args", ()), *rest)
    chosen |= options | {"engine_args": engine_args}
    if "join" in chosen:
        _check_join(chosen)
    if chosen.get("gateway_only"):
        chosen = {"decoders": (), "prefill_replicas": 0} | chosen
    for flag in ("prefill", "decoders"):
        if flag not in chosen:
            raise UsageError(f"--{flag} is missing (see {prog} --help)")
    chosen["limits"] = taken_limits(chosen)
    if "drain" in chosen:
        chosen["drain_s"] = chosen.pop("drain")
    return ClusterSpec(**settled(chosen))


def flag_help() -> dict[str, str]:
    """What the flags mean, by the key of a specification that is the same."""
    actions = _parser("ps-sglang launch", _DESCRIPTION)._actions
    return {action.dest: action.help for action in actions if action.help is not None}


def _check_join(chosen: dict[str, Any]) -> None:
    """What differs for workers that join a cluster: they bring no gateway, and no base's worker.

    Raises UsageError for an option that is the gateway's.
    """
    of_gateway = (
        "host",
        "port",
        "gateway_processes",
        "admin_host",
        "admin_port",
        "cors_origins",
        "otlp_endpoint",
        "drain",
    )
    for flag in (*of_gateway, "api_keys", "no_keys", "tls_cert", "tls_key", *LIMITS):
        if flag in chosen:
            flag = flag.replace("_", "-")
            raise UsageError(f"--{flag} is the gateway's, and --join starts none")
    chosen.setdefault("prefill_replicas", 0)
    if chosen["prefill_replicas"]:
        chosen.setdefault("decoders", ())


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = SettingsParser(
        prog,
        description=description,
        epilog=_EPILOG.format(prog=prog),
        usage=f"{prog} --prefill MODEL --decoders MODEL,... [options] [engine flags]",
    )
    default = ClusterSpec("", ("",))
    add = parser.add_argument
    add("--prefill", metavar="MODEL", help="the base model")
    add(
        "--decoders",
        metavar="MODEL,...",
        type=listed,
        help="the decoders, separated by commas",
    )
    add(
        "--spec",
        type=Path,
        metavar="FILE",
        help="read these options from a YAML file; flags given here win over it",
    )
    add("--host", help=f"address that the gateway listens on (default {default.host})")
    add(
        "--port", type=int, help=f"port of the gateway, 0 for any free one (default {default.port})"
    )
    add(
        "--gateway-processes",
        type=int,
        metavar="N",
        help="serve the port with N processes of the gateway, each of which fills a core "
        f"(default {default.gateway_processes})",
    )
    add(
        "--cors-origins",
        metavar="ORIGIN,...",
        type=listed,
        help="let web pages of these origins use the gateway, * for all (default: none)",
    )
    add_limits(parser)
    add(
        "--admin-port",
        type=int,
        metavar="N",
        help="serve what is for admins (workers, decoders, flush, debug) on this port only",
    )
    add("--admin-host", metavar="HOST", help="address for --admin-port (default: that of --host)")
    add(
        "--api-keys",
        type=user_path,
        metavar="FILE",
        help="ask clients for a key of this file, which `ps-sglang keys` writes (default: serve "
        "this machine only, without keys)",
    )
    add(
        "--no-keys",
        action="store_true",
        help="let everybody use the gateway who reaches --host, though not change the cluster",
    )
    add(
        "--tls-cert",
        type=user_path,
        metavar="FILE",
        help="serve HTTPS with this certificate (PEM); a new one is taken without a restart",
    )
    add("--tls-key", type=user_path, metavar="FILE", help="the certificate's key (PEM)")
    add(
        "--drain",
        type=float,
        metavar="S",
        help="on SIGTERM or Ctrl-C answer /ready with 503, and give requests S seconds to end "
        f"(default {default.drain_s:g})",
    )
    add(
        "--prefill-replicas",
        type=int,
        metavar="N",
        help=f"number of prefill workers (default {default.prefill_replicas})",
    )
    add(
        "--decode-replicas",
        type=int,
        metavar="N",
        help="number of decode workers for all adapters together, and for each whole model "
        f"without a *N of its own (default {default.decode_replicas})",
    )
    add(
        "--gateway-only",
        action="store_true",
        help="start the gateway alone; workers join it with `ps-sglang worker`, from any machine",
    )
    add(
        "--one-worker",
        action="store_true",
        help="start one server that prefills and decodes, for adapters of the base: for one GPU, "
        "or little memory",
    )
    add(
        "--dry-run",
        action="store_true",
        help="print where each worker would run, with what memory, variables and flags, and end",
    )
    add(
        "--on",
        choices=("ray",),
        help="run the workers and the gateway as actors of a Ray cluster (needs the extra `ray`; "
        "default: on this machine)",
    )
    add(
        "--ray-address",
        metavar="ADDRESS",
        help="the Ray cluster for --on ray (default: $RAY_ADDRESS, or the one on this machine)",
    )
    add(
        "--join",
        metavar="URL",
        help="start no gateway: have the decoders' workers (and prefill workers only as "
        "--prefill-replicas says) join the running cluster behind the gateway at URL",
    )
    add_shared(parser)
    for flag, role in zip(_ROLE_FLAGS, ("prefill", "decode"), strict=True):
        add(flag, type=_words, metavar='"..."', help=f"SGLang flags for {role} workers only")
    return parser


def listed(text: str) -> tuple[str, ...]:
    """What commas separate."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def glued(argv: Sequence[str]) -> list[str]:
    """`--decode-engine-args --x` as `--decode-engine-args=--x`: argparse takes it for a flag."""
    glued: list[str] = []
    for word in argv:
        if glued and glued[-1] in _ROLE_FLAGS:
            glued[-1] += f"={word}"
        else:
            glued.append(word)
    return glued
