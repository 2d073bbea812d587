"""Names that SGLang's flags take, read out of its files, as importing it costs seconds (0.5.23)."""

from __future__ import annotations

import re
import runpy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from ps_sglang.errors import MissingPackageError

AUTO: Final = "auto"
"""The parser that SGLang finds by the chat template."""

_CHAT_TEMPLATE: Final = re.compile(r'\bname="([^"]+)"')


@cache
def tool_call_parsers() -> tuple[str, ...]:
    """What `--tool-call-parser` takes."""
    return _parsers("function_call/parser_names.py", "TOOL_CALL_PARSER_NAMES")


@cache
def reasoning_parsers() -> tuple[str, ...]:
    """What `--reasoning-parser` takes."""
    return _parsers("parser/reasoning_parser_names.py", "REASONING_PARSER_NAMES")


@cache
def chat_templates() -> tuple[str, ...]:
    """The built-in templates that `--chat-template` takes beside files."""
    files = (_file("parser/conversation.py"), _file("parser/python_chat_template.py"))
    return tuple(name for file in files for name in _CHAT_TEMPLATE.findall(file.read_text("utf-8")))


def _parsers(path: str, name: str) -> tuple[str, ...]:
    return (AUTO, *runpy.run_path(str(_file(path)))[name])


def _file(path: str) -> Path:
    spec = find_spec("sglang")  # which imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError("SGLang is not installed, whose names are asked for")
    return Path(spec.submodule_search_locations[0]) / "srt" / path
