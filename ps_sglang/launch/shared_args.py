"""The options that `ps-sglang launch` and `ps-sglang worker` have in common."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ps_sglang.gateway.config import LogFormat
from ps_sglang.launch.spec import ClusterSpec
from ps_sglang.parser import user_path


def add_shared(parser: argparse.ArgumentParser) -> None:
    """The options that all kinds of workers have."""
    default = ClusterSpec("", ("",))
    add = parser.add_argument
    add(
        "--advertise",
        metavar="ADDRESS",
        help="the address under which other machines reach the workers",
    )
    add(
        "--gpus",
        metavar="GPUS",
        help="GPUs to place workers on: all (the default, if there are any), numbers as 0,2, or "
        "with launch --dry-run the description of a machine, as 8x80GB",
    )
    add(
        "--max-restarts",
        type=int,
        metavar="N",
        help="restart a process that dies or hangs N times in ten minutes at most "
        f"(default {default.max_restarts})",
    )
    add(
        "--transfer-backend",
        choices=("zmq", "mooncake", "nixl"),
        help="how KV pages travel (default zmq on a CPU, mooncake on a GPU)",
    )
    add(
        "--allow-unverified",
        action="store_true",
        help="admit decoders without a prefillshare.json; shapes and tokenizer are still checked",
    )
    add(
        "--model-root",
        type=user_path,
        action="append",
        dest="model_roots",
        metavar="FOLDER",
        help="let swaps and new decoders load from below this folder, may be repeated (default: "
        "the folders in which the models given here lie)",
    )
    add(
        "--cluster-key-file",
        type=user_path,
        metavar="FILE",
        help="the key that workers and gateway share, for workers on other hosts (default: a new "
        "one; with --join that of the cluster, if it is on this machine)",
    )
    add(
        "--allow-unsafe",
        action="store_true",
        help="admit flags of SGLang that run what a request brings, or open a port without a key; "
        "only admins may use them",
    )
    add(
        "--log-dir",
        type=Path,
        metavar="DIR",
        help="where each worker's log goes (default: a new folder under ~/.cache/ps_sglang/logs)",
    )
    add(
        "--log-format",
        type=LogFormat,
        choices=tuple(LogFormat),
        help="how the gateway and the launcher write their lines: text, or one JSON object each "
        f"(default {default.log_format})",
    )
    add(
        "--otlp-endpoint",
        metavar="URL",
        help="export OpenTelemetry traces to the collector there, over HTTP, such as "
        "http://localhost:4318 (needs the extra `otel`; default: none)",
    )
    add(
        "--ready-timeout",
        type=float,
        metavar="S",
        help="give up if a worker is not ready after so many seconds "
        f"(default {default.ready_timeout_s:g})",
    )


def settled(chosen: dict[str, Any]) -> dict[str, Any]:
    """Options of `add_shared` as ClusterSpec has them."""
    if "model_roots" in chosen:
        chosen["model_roots"] = tuple(chosen["model_roots"])
    if "ready_timeout" in chosen:
        chosen["ready_timeout_s"] = chosen.pop("ready_timeout")
    return chosen
