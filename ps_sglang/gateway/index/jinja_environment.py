"""Jinja as `transformers` sets it up for chat templates, and what SGLang reads off a template."""

from __future__ import annotations

import json
from datetime import datetime
from typing import NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MEDIA = ("image", "audio", "video", "vision")


def reads_content_parts(source: str, environment: jinja2.Environment) -> bool:
    """Whether the template goes through the parts of a message's content, as the engine judges."""
    if any(word in source for word in _MEDIA):
        return True
    loops = environment.parse(source).find_all(jinja2.nodes.For)
    return any(
        _reads(loop.iter, name, "content") for loop in loops for name in ("message", "msg", "m")
    )


def _reads(node: jinja2.nodes.Node | None, name: str, key: str) -> bool:
    """Whether an expression is `name.key`, or `name['key']`, filtered, tested or sliced."""
    while isinstance(node, jinja2.nodes.Filter | jinja2.nodes.Test) or (
        isinstance(node, jinja2.nodes.Getitem) and isinstance(node.arg, jinja2.nodes.Slice)
    ):
        node = node.node
    if isinstance(node, jinja2.nodes.Getitem):
        read: object = node.arg.value if isinstance(node.arg, jinja2.nodes.Const) else None
    elif isinstance(node, jinja2.nodes.Getattr):
        read = node.attr
    else:
        return False
    return read == key and isinstance(node.node, jinja2.nodes.Name) and node.node.name == name


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant says, for training; here it shows its inside."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def chat_environment() -> ImmutableSandboxedEnvironment:
    """As `transformers` sets up chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda style: datetime.now().strftime(style)
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
