"""What an engine's refusal tells a client: the place, the reason, and OpenAI's code for it.

SGLang prints FastAPI's validation errors as Python objects, one for each alternative of a union
that the value might have been. A client needs the alternative that it meant.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CONTEXT_EXCEEDED = "context_length_exceeded"

_MOST = 5  # problems that a message tells
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_ITEM = rf"(?:{_QUOTED}|\d+)"
_PROBLEM = re.compile(
    rf"'loc': \((?P<place>(?:{_ITEM}(?:, {_ITEM})*,?)?)\), 'msg': (?P<text>{_QUOTED})"
    # Only a short plain value is repeated.
    rf"(?:, 'input': (?P<value>'[^'\\]{{0,60}}'|-?\d[\d.e+-]{{0,30}}|True|False|None)[,}}])?"
)
# Names of alternatives (classes, types), which stand among the names of fields.
_FIELD = re.compile(r"[a-z_][a-z0-9_]*")
_TYPES = frozenset(("str", "int", "float", "bool", "none", "dict", "list"))

# The four ways in which SGLang 0.5.23 says that a prompt has no room.
_TOO_LONG = re.compile(
    r"longer than the model's context length|exceeds the model's maximum context length"
    r"|exceeds the maximum allowed length|exceeds the maximum number of tokens"
)


@dataclass(frozen=True)
class _Problem:
    """`place` leads from the body to the value, through fields, positions and alternatives."""

    place: tuple[str | int, ...]
    text: str
    value: str | None

    def fields(self, start: int = 0) -> tuple[str | int, ...]:
        """The place from `start` on, without the alternatives in it."""
        return tuple(part for part in self.place[start:] if not _is_alternative(part))

    @property
    def path(self) -> str:
        """The place as a client would write it, as in `messages[1].content`."""
        parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.fields())
        return "".join(parts).removeprefix(".")


def readable(message: str) -> tuple[str, str | None]:
    """An engine's message in sentences, and the path of the value that the first is about."""
    first = message.partition("\n")[0]
    if not re.fullmatch(r"\d+ validation errors?:", first):
        return message, None
    distinct = dict.fromkeys(map(_problem, _PROBLEM.finditer(message)))  # in order, each once
    by_path: dict[str, list[_Problem]] = {}
    for problem in _meant(list(distinct), 0):
        by_path.setdefault(problem.path, []).append(problem)
    if not by_path:
        return first.rstrip(":"), None
    sentences = [_sentence(path, problems) for path, problems in by_path.items()]
    if len(sentences) > _MOST:
        sentences[_MOST:] = [f"and {len(sentences) - _MOST} more"]
    return "; ".join(sentences), next(iter(by_path)) or None


def code_of(status: int, message: str) -> str | None:
    """OpenAI's code for an engine's refusal, where it has one."""
    return CONTEXT_EXCEEDED if status == 400 and _TOO_LONG.search(message) else None


def _problem(match: re.Match[str]) -> _Problem:
    place = tuple(_literal(part) for part in re.findall(_ITEM, match["place"]))
    text = str(_literal(match["text"])).removeprefix("Value error, ").rstrip(".")
    return _Problem(place[1:] if place[:1] == ("body",) else place, text, match["value"])


def _literal(text: str) -> str | int:
    try:
        value: str | int = ast.literal_eval(text)
        return value
    except (SyntaxError, ValueError):  # it only looked like Python, inside a client's own text
        return text


def _sentence(path: str, problems: Sequence[_Problem]) -> str:
    reasons = " or ".join(dict.fromkeys(problem.text for problem in problems))
    value = "" if problems[0].value is None else f", not {problems[0].value}"
    return f"`{path}`: {reasons}{value}" if path else f"{reasons}{value}"


def _meant(problems: Sequence[_Problem], depth: int) -> list[_Problem]:
    """The problems that concern what the client meant; all have the same place up to `depth`."""
    meant: list[_Problem] = []
    alternatives: list[list[_Problem]] = []
    for part, group in _by_part(problems, depth):
        if part is None:
            meant += group
        elif _is_alternative(part):
            alternatives.append(_meant(group, depth + 1))
        else:
            meant += _meant(group, depth + 1)

    def incompatibility(problems: list[_Problem]) -> tuple[bool, bool, int]:
        """A value of another kind fits worse than one with mistakes inside."""
        inside = [one.fields(depth + 1) for one in problems]
        return () in inside, ("role",) in inside or ("type",) in inside, len(problems)

    best = min(map(incompatibility, alternatives), default=None)
    return meant + [
        one for group in alternatives if incompatibility(group) == best for one in group
    ]


def _by_part(
    problems: Iterable[_Problem], depth: int
) -> Iterable[tuple[str | int | None, list[_Problem]]]:
    groups: dict[str | int | None, list[_Problem]] = {}
    for problem in problems:
        part = problem.place[depth] if depth < len(problem.place) else None
        groups.setdefault(part, []).append(problem)
    return groups.items()


def _is_alternative(part: str | int) -> bool:
    return isinstance(part, str) and (part in _TYPES or not _FIELD.fullmatch(part))
