"""What a worker tells about itself, so that a cluster can see whether it fits before it joins."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any, Final

from ps_sglang.contract import model_facts, trained_on
from ps_sglang.contract.served_template import served_template_digest
from ps_sglang.engine.hooking import after
from ps_sglang.engine.settings import BASE_FINGERPRINT
from ps_sglang.errors import PsSglangError

KEY: Final = "ps_sglang"
"""Where the facts stand in the answer of `/server_info`."""

_ENGINE_FACTS: Final = ("page_size", "kv_cache_dtype", "dtype", "disaggregation_transfer_backend")


@after("utils.common.build_server_info", "server_args", "scheduler_info")
def build_server_info(
    info: dict[str, Any], server_args: Any, scheduler_info: dict[str, Any]
) -> dict[str, Any]:
    """After ``build_server_info``: add `{KEY: {"common": {...}, "trained_on": ...}}`.

    `common` must be equal on all workers of a cluster; `trained_on` is the fingerprint of the base
    whose cache the checkpoint reads, None where it is not known. A checkpoint that cannot be
    read gives `{"problem": why}` instead.
    """
    try:
        facts = _model(Path(server_args.model_path))
    except PsSglangError as error:
        return {**info, KEY: {"problem": str(error)}}
    engine = {name: info[name] for name in _ENGINE_FACTS}
    if server_args.chat_template:
        engine["chat template"] = served_template_digest(server_args.chat_template)
    base = {"base fingerprint": os.environ.get(BASE_FINGERPRINT)}
    return {**info, KEY: {**facts, "common": {**base, **facts["common"], **engine}}}


@cache
def _model(folder: Path) -> dict[str, Any]:
    # Of the checkpoint that the worker started with: one that replaced it had the same.
    return {
        "common": model_facts(folder),
        "trained_on": trained_on(folder, os.environ.get(BASE_FINGERPRINT)),
    }
