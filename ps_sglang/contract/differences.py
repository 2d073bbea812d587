"""Differences between a base and a decoder, and their report for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ps_sglang.contract.shape import ModelShape
from ps_sglang.contract.tensors import Tensor

_OTHER_MODEL = "a decoder must be a fine-tune of this very base; choose one that is"
_LINE = 90
# `lm_head.weight` may be stored or not where embeddings are tied.
_OPTIONAL = frozenset({"lm_head.weight"})


@dataclass(frozen=True)
class Difference:
    """One item in which a decoder differs from the base, and how to mend it.

    `sides` are what the two values belong to, where that is not the base and a whole model.
    """

    what: str
    base: object
    decoder: object
    mend: str
    sides: tuple[str, str] = ("base", "decoder")

    def __str__(self) -> str:
        ours, theirs = self.sides
        return f"{self.what}: {ours} {self.base}, {theirs} {self.decoder}"


def shape_differences(base: ModelShape, decoder: ModelShape) -> Iterator[Difference]:
    ours, theirs = shape_rows(base), shape_rows(decoder)
    for item in ours | theirs:
        if ours.get(item) != theirs.get(item):
            yield Difference(item, ours.get(item), theirs.get(item), _OTHER_MODEL)


def shape_rows(shape: ModelShape) -> dict[str, object]:
    """One row per item, and one per item of the rope ("rope theta", "rope factor")."""
    items = shape.as_dict()
    rope = {f"rope {key.removeprefix('rope_')}": value for key, value in items.pop("rope").items()}
    return {item.replace("_", " "): value for item, value in (items | rope).items()}


def tensor_differences(
    base: Mapping[str, Tensor], decoder: Mapping[str, Tensor]
) -> Iterator[Difference]:
    """At most three rows: tensors that are missing, too many, or of another shape."""
    names, theirs = base.keys() - _OPTIONAL, decoder.keys() - _OPTIONAL
    if missing := sorted(names - theirs):
        yield Difference("missing tensors", some(missing), "none of them", _OTHER_MODEL)
    if extra := sorted(theirs - names):
        yield Difference("extra tensors", "none of them", some(extra), _OTHER_MODEL)
    reshaped = sorted(n for n in names & theirs if base[n].shape != decoder[n].shape)
    if reshaped:
        first = reshaped[0]
        what = f"shape of {some(reshaped)}"
        yield Difference(what, list(base[first].shape), list(decoder[first].shape), _OTHER_MODEL)


def some(names: list[str]) -> str:
    """The first of `names`, and how many more there are."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return names[0] + more


def report(
    base: Path | str, decoders: Mapping[str, Path], differences: Mapping[str, list[Difference]]
) -> tuple[str, tuple[str, ...]]:
    """The message for a person, and one line per difference."""
    count = (
        f"{len(differences)} of {len(decoders)} decoders" if len(decoders) > 1 else "the decoder"
    )
    lines = [f"{count} cannot be served with the base {base}:"]
    for name, rows in differences.items():
        lines.append(f"  {name} ({decoders[name]})")
        lines += [f"    {line}" for row in rows for line in _lines(row)]
        lines += [f"    to mend: {mend}" for mend in dict.fromkeys(row.mend for row in rows)]
    return "\n".join(lines), tuple(f"{n}: {row}" for n, rows in differences.items() for row in rows)


def _lines(row: Difference) -> list[str]:
    """One line where it fits; digests and paths one under the other, to be compared by eye."""
    line = str(row)
    if len(line) <= _LINE:
        return [line]
    width = max(map(len, row.sides)) + 2
    values = zip(row.sides, (row.base, row.decoder), strict=True)
    return [row.what, *(f"  {side + ':':{width}}{value}" for side, value in values)]
