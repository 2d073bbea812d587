"""SGLang's flags checked as SGLang itself would, without importing it, which takes 15 s.

`sglang_flags.json` is its command line as data; `engine/compat/flags.py` wrote it.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, NoReturn

from ps_sglang.errors import UsageError
from ps_sglang.launch.flags import DEFAULTED, groups

_TABLE: Final = Path(__file__).with_name("sglang_flags.json")
# Plugins of others may bring choices of their own; the second package comes with SGLang.
_PLUGINS: Final = ("sglang.srt.plugins", "sglang.srt.platforms")
_KNOWN_PLUGINS: Final = frozenset({"ps-sglang", "smg-grpc-servicer"})
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)(k|M|G|T)|(\d+)(Ki|Mi|Gi|Ti)")
_POWERS: Final = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


def size(text: str) -> int:
    """A count as SGLang takes it: 8192, 8k (thousands), 8Ki (1024s), 1.5M.

    Raises ValueError.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return int(text)
    number, unit, binary, binary_unit = match.groups()
    if binary:
        return int(binary) * int(1024 ** _POWERS[binary_unit[0]])
    return int(Decimal(number) * 1000 ** _POWERS[unit])


def _json(text: str) -> Any:
    return json.loads(text)


_json.__name__ = "JSON"  # argparse tells it
_KINDS: Final[Mapping[str, Callable[[str], Any]]] = {
    "int": int,
    "float": float,
    "size": size,
    "json": _json,
}


def checked(words: Sequence[str], source: str) -> tuple[str, ...]:
    """`words` with every flag's name in full, SGLang's first name for it.

    Raises UsageError if SGLang has no such flag or cannot take its value; names both and `source`.
    """
    full: list[str] = []
    accepted: list[str] = []
    for name, group in groups(words):
        if not name:
            raise UsageError(f"{source}: {group[0]!r} belongs to no flag")
        if f"--{name.removeprefix('--no-')}" in DEFAULTED and name not in _names():
            if group != [name]:
                raise UsageError(f"{source}: {name} takes no value, not {' '.join(group[1:])!r}")
            full += group  # takes a default of the launcher's away
            continue
        full_name = _full_name(name, source)
        group = [full_name + group[0].removeprefix(name), *group[1:]]
        full += group
        accepted += group
    parser = _parser()
    parser.source = source
    parser.parse_args(accepted)
    return tuple(full)


class _Parser(argparse.ArgumentParser):
    source = ""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.source}: {message.removeprefix('argument ')}")


@cache
def _table() -> list[dict[str, Any]]:
    flags: list[dict[str, Any]] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return flags


@cache
def _names() -> dict[str, str]:
    """Every name of every flag, to the one that stands for it."""
    return {
        name: name if flag["kind"] == "switch" else flag["names"][0]
        for flag in _table()
        for name in flag["names"]
    }


@cache
def _parser() -> _Parser:
    parser = _Parser(prog="sglang", add_help=False, allow_abbrev=False)
    plugins = (entry for group in _PLUGINS for entry in entry_points(group=group))
    alone = all(entry.dist and entry.dist.name in _KNOWN_PLUGINS for entry in plugins)
    for flag in _table():
        if flag["kind"] == "switch":
            parser.add_argument(*flag["names"], action="store_true")
            continue
        parser.add_argument(
            *flag["names"],
            type=_KINDS.get(flag["kind"], str),
            nargs=flag.get("nargs"),
            choices=flag.get("choices") if alone else None,
        )
    return parser


def _full_name(name: str, source: str) -> str:
    names = _names()
    if name in names:
        return names[name]
    matches = sorted(candidate for candidate in names if candidate.startswith(name))
    if len(matches) == 1:  # as argparse takes it
        return names[matches[0]]
    if not matches:
        matches = difflib.get_close_matches(name, names)
    hint = f"; did you mean {' or '.join(matches[:3])}?" if matches else ""
    raise UsageError(f"{source}: SGLang has no flag {name}{hint}")
