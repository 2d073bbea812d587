"""Checks of fields as JSON schemas, for the OpenAPI document.

A check's schema says which JSON it can take. It may take less than that: what a model's vocabulary
or another field forbids is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

Schema = dict[str, Any]

_Check = TypeVar("_Check", bound=Callable[..., Any])
_SCHEMAS: Final[dict[Callable[..., Any], Schema]] = {}


def describe(schema: Schema) -> Callable[[_Check], _Check]:
    """Decorates a check with the schema of what it takes."""

    def decorate(check: _Check) -> _Check:
        _SCHEMAS[check] = schema
        return check

    return decorate


def schema_of(check: Callable[..., Any]) -> Schema:
    """What a check takes; anything, if it is not described."""
    return _SCHEMAS.get(check, {})


def object_schema(
    table: Mapping[str, Callable[..., Any]],
    known: Mapping[str, Schema] | None = None,
    needed: Sequence[str] = (),
) -> Schema:
    """An object with the fields of a table; `known` has schemas that the checks do not tell.

    Those that are not `needed` may be null, which is as if they were not there.
    """
    properties = {name: schema_of(check) for name, check in table.items()} | dict(known or {})
    schema: Schema = {
        "type": "object",
        "properties": {
            name: one if name in needed else _nullable(one) for name, one in properties.items()
        },
    }
    if needed:
        schema["required"] = list(needed)
    return schema


def with_one_of(schema: Schema, *names: str) -> Schema:
    """The object of a schema, of whose fields `names` one must be given."""
    given = [
        {"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in names
    ]
    return {**schema, "oneOf": given}


def _nullable(schema: Schema) -> Schema:
    if not schema:
        return {}
    return {"anyOf": [schema, {"type": "null"}]}
