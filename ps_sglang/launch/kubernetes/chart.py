"""A Helm chart of the same objects: each value's place has a hole, which Helm fills."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Final, cast

from ps_sglang import __version__
from ps_sglang.errors import UsageError
from ps_sglang.launch.kubernetes import text
from ps_sglang.launch.kubernetes.objects import gateway, workload
from ps_sglang.launch.kubernetes.values import ChartValues, WorkerValues

_CHART: Final = {
    "apiVersion": "v2",
    "name": "ps-sglang",
    "description": "PrefillShare for SGLang: one base prefill serves many decoders",
    "type": "application",
    "version": __version__,
    "appVersion": __version__,
    "kubeVersion": ">=1.30.0-0",  # preStop.sleep
}
_HEAD: Final = "{{- /* Written by `ps-sglang manifest --chart`, as all of this chart. */ -}}\n"
_VALUES_HEAD: Final = "# Written by `ps-sglang manifest --chart`, of a specification.\n"
_RANGE: Final = "{{- range $name, $worker := $.Values.workers }}\n"


def write_chart(folder: Path, values: ChartValues) -> list[Path]:
    """Write the chart with these values; returns its files. Raises UsageError if it cannot."""
    files = {
        "Chart.yaml": text.one(_CHART),
        "values.yaml": _VALUES_HEAD + text.one(asdict(values)),
        **{f"templates/{name}": template for name, template in _templates().items()},
    }
    try:
        (folder / "templates").mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(content)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from error
    return [folder / name for name in files]


def _templates() -> dict[str, str]:
    holes = _Holes()
    values = cast(ChartValues, holes.hole("$.Values"))
    checksum = cast(str, holes.hole("$.Values.gateway.spec | sha256sum"))
    shared = text.every(gateway(values, checksum))
    name, worker = cast(str, holes.hole("$name")), cast(WorkerValues, holes.hole("$worker"))
    each = text.every(workload(values, name, worker))
    return {
        "gateway.yaml": _HEAD + holes.filled(shared),
        "workers.yaml": _HEAD + _RANGE + holes.filled(each) + "{{- end }}\n",
    }


class _Hole(str):
    """Stands for what the template's `expression` gives, and its attributes for those of that.

    In a list, `*` leaves a place for all its items.
    """

    expression: str
    holes: _Holes

    def __getattr__(self, name: str) -> _Hole:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.holes.hole(f"{self.expression}.{name}")

    def __iter__(self) -> Iterator[str]:
        yield self.holes.hole(self.expression, all_items=True)


class _Holes:
    """Marks in a text, and what is to stand in their places."""

    def __init__(self) -> None:
        self._expressions: dict[str, str] = {}
        self._items: dict[str, str] = {}
        self._numbers = count()

    def hole(self, expression: str, *, all_items: bool = False) -> _Hole:
        """A new one."""
        hole = _Hole(f"hole{next(self._numbers)}x")
        hole.expression, hole.holes = expression, self
        (self._items if all_items else self._expressions)[str.__str__(hole)] = expression
        return hole

    def filled(self, template: str) -> str:
        """With Helm's expressions in their places."""
        for hole, expression in self._items.items():
            items = rf"\1{{{{- range {expression} }}}}\n\1- {{{{ . | toJson }}}}\n\1{{{{- end }}}}"
            template = re.sub(rf"^( *)- {hole}$", items, template, flags=re.MULTILINE)
        for hole, expression in self._expressions.items():
            # A whole value is of any type, a part of a text is one.
            whole = rf"\1 {{{{ {expression} | toJson }}}}"
            template = re.sub(rf"([:-]) {hole}$", whole, template, flags=re.MULTILINE)
            template = template.replace(hole, f"{{{{ {expression} }}}}")
        return template
