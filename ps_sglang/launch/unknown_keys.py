"""Keys of a file that its type does not have, each with the key that was probably meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from msgspec import inspect


def unknown_keys(content: Any, kind: type) -> Iterator[str]:
    """What is wrong with the keys in `content`, decoded YAML that is to become a `kind`.

    Values of another type are none of its business: msgspec refuses them.
    """
    yield from _walk(content, inspect.type_info(kind), "")


def _walk(value: Any, kind: inspect.Type, place: str) -> Iterator[str]:
    match value, kind:
        case dict(), inspect.StructType(fields=fields):
            kinds = {field.encode_name: field.type for field in fields}
            for key, one in value.items():
                if key in kinds:
                    yield from _walk(one, kinds[key], f"{place}{key}.")
                else:
                    yield _unknown(place, str(key), list(kinds))
        case dict(), inspect.DictType(value_type=each):
            for key, one in value.items():
                yield from _walk(one, each, f"{place}{key}.")
        case list(), inspect.VarTupleType(item_type=each):
            for number, one in enumerate(value):
                yield from _walk(one, each, f"{place.removesuffix('.')}[{number}].")
        case _, inspect.UnionType(types=kinds_of):
            for each in kinds_of:
                yield from _walk(value, each, place)


def _unknown(place: str, key: str, keys: list[str]) -> str:
    return f"unknown key {place}{key}: {meant(key.lower().replace('-', '_'), keys, cutoff=0.5)}"


def meant(name: str, names: Sequence[str], cutoff: float = 0.6) -> str:
    """In words: the one of `names` that is nearest to `name`, or all if none is near."""
    near = get_close_matches(name, names, n=1, cutoff=cutoff)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
