"""Objects as YAML for people: keys in their order, and texts of several lines as such."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", str.__str__(value), style=style)


_Dumper.add_multi_representer(str, _text)
_Dumper.add_representer(str, _text)  # before that of its base class


def one(value: Any) -> str:
    """A document."""
    document: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=10_000)
    return document


def every(values: Iterable[Any]) -> str:
    """Documents, each after a line that divides it from what comes before."""
    return "".join(f"---\n{one(value)}" for value in values)
