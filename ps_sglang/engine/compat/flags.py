"""SGLang's command line as data, so that the launcher can check flags without importing SGLang.

python -m ps_sglang.engine.compat.flags > ps_sglang/launch/sglang_flags.json
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any, Final

from sglang.srt.server_args import ServerArgs

# SGLang accepts a value or two more where these are set.
_WIDENS_CHOICES: Final = "SGLANG_KV_CANARY_ENABLE_TOKEN_ORACLE"
# What a value must be, by the name of its argparse type; "text" takes anything.
_KINDS: Final = {
    "str": "str",
    "int": "int",
    "float": "float",
    "human_readable_int": "size",
    "loads": "json",
    "json_list_type": "json",
}


def describe() -> list[dict[str, Any]]:
    """Every flag of `sglang.launch_server`: its names, what its values must be, how many."""
    os.environ[_WIDENS_CHOICES] = "1"
    parser = argparse.ArgumentParser(add_help=False)
    ServerArgs.add_cli_args(parser)
    return [_flag(action) for action in parser._actions]


def _flag(action: argparse.Action) -> dict[str, Any]:
    if action.nargs == 0:
        return {"names": list(action.option_strings), "kind": "switch"}
    name = "str" if action.type is None else getattr(action.type, "__name__", "")
    flag: dict[str, Any] = {"names": list(action.option_strings), "kind": _KINDS.get(name, "text")}
    if action.nargs is not None:
        flag["nargs"] = action.nargs
    if action.choices is not None and flag["kind"] != "text":
        flag["choices"] = sorted(action.choices, key=str)
    return flag


if __name__ == "__main__":
    print("[\n" + ",\n".join(map(json.dumps, describe())) + "\n]")
