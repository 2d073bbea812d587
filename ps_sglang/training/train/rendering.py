"""What a record holds that its rendered text does not show.

A chat template takes what it knows of a message and drops the rest without a word: an answer made
of tool calls becomes an empty turn, and is trained as one. So a mark is planted into every value
of the record, the record is rendered again, and each mark is looked for. A value whose mark is
missing, because the template asks what the value is, is changed alone; its text must be there
whole, too. Ids and types of calls are left out: they only tie messages together.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from ps_sglang.training.train.fields import field_name
from ps_sglang.training.train.records import ChatRecord

# A record and the index of an answer -> the prompt before the answer, and all up to its end.
Render = Callable[[ChatRecord, int], tuple[str, str]]
Path = tuple[str | int, ...]

_KEY: Final = "\0key"
_MESSAGE_PLUMBING: Final = frozenset({"role", "tool_call_id"})
_CALL_PLUMBING: Final = frozenset({"id", "type", "index"})
# Objects whose keys are the user's own words, not those of a format.
_OWN_KEYS: Final = ("arguments", "properties", "$defs", "definitions")


def unrendered(
    record: ChatRecord, answers: Mapping[int, tuple[str, str]], render: Render
) -> list[Path]:
    """Where `record` holds what no text shows; an answer's own parts must be in its own text.

    `answers`: index of an assistant's message -> the prompt before it, and all up to its end.
    """
    leaves = dict(_leaves(record))
    texts = {index: _Text(whole) for index, (_, whole) in answers.items()}
    marks = _marks(leaves, [whole for _, whole in answers.values()])
    planted = {index: _try(render, _planted(record, marks), index) for index in answers}
    missing = []
    for path, value in leaves.items():
        owner = path[1] if path[0] == "messages" and path[1] in answers else None
        where = [owner] if isinstance(owner, int) else list(answers)
        shown = any(_in(marks[path], planted[index]) for index in where)
        if not shown:
            changes = [
                _change(record, path, marks[path], index, answers[index], render)
                for index in dict.fromkeys((where[0], where[-1]))
            ]
            shown = "mark" in changes
            # A word of a set (a schema's type, true, null) need not show as it is written.
            word = (path[0], path[-1]) == ("tools", "type") or not isinstance(value, str)
            if word and "text" in changes:
                continue
        if shown and isinstance(value, str):
            shown = any(
                (texts[i] if owner is None else _own(value, *answers[i])).holds(value)
                for i in where
            )
        if not shown:
            missing.append(path)
    return _collapsed(missing, list(leaves))


def nothing_shown(record: ChatRecord, index: int, missing: Sequence[Path]) -> bool:
    """Whether all that message `index` holds is under the paths `missing`."""
    leaves = [path for path, _ in _leaves(record) if path[:2] == ("messages", index)]
    return all(
        any(path[: len(path_prefix)] == path_prefix for path_prefix in missing) for path in leaves
    )


def shown_name(path: Path, *, every: bool = False) -> str:
    """`path` for a person; `every` leaves indices out, to count what many records have."""
    return field_name([part for part in path if part != _KEY], every=every)


def _leaves(record: ChatRecord) -> Iterator[tuple[Path, Any]]:
    """Each value at the bottom, and each key that is the user's own, with its path."""
    for index, message in enumerate(record.messages):
        for key, value in message.items():
            if key not in _MESSAGE_PLUMBING:
                yield from _within(value, ("messages", index, key))
    yield from _within(record.tools, ("tools",))
    for name, value in record.variables.items():
        yield from _within(value, (name,))


def _within(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if _is_plumbing(path, key):
                continue
            if _owns_keys(path):
                yield (*path, key, _KEY), key
            yield from _within(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _within(inner, (*path, index))
    # A null beside messages or tools was not given; within them it is a value.
    elif not (isinstance(value, str) and not value.strip()) and not (
        value is None and path[1:] == ()
    ):
        yield path, value


def _is_plumbing(path: Path, key: str) -> bool:
    if path[0] == "tools":
        return key == "type" and (len(path) == 2 or path[-1] == "parameters")
    return len(path) == 4 and path[2] == "tool_calls" and key in _CALL_PLUMBING


def _owns_keys(path: Path) -> bool:
    return "arguments" in path[3:] or (path[0] == "tools" and path[-1] in _OWN_KEYS)


def _marks(leaves: Mapping[Path, Any], texts: Sequence[str]) -> dict[Path, str]:
    """A mark for each leaf that stands in no text: letters and digits, which no escaping changes;
    digits alone for numbers."""
    digits = "861"
    while any(re.search(rf"{digits}\d{{6}}", text) for text in texts):
        digits += "3"
    word = "zq"
    while any(word in text.casefold() for text in texts):
        word += "xq"
    return {
        path: f"{digits}{index:06}" if _is_number(value) else f"{word}{index}x"
        for index, (path, value) in enumerate(leaves.items())
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _planted(record: ChatRecord, marks: Mapping[Path, str], *, turn: bool = False) -> ChatRecord:
    """A copy of `record` with the marks in it: after a text, in place of anything else.

    `turn`: true becomes false and false true, instead of a mark.
    """

    def copy(value: Any, path: Path) -> Any:
        if isinstance(value, dict):
            return {
                key + marks.get((*path, key, _KEY), ""): copy(inner, (*path, key))
                for key, inner in value.items()
            }
        if isinstance(value, list):
            return [copy(inner, (*path, index)) for index, inner in enumerate(value)]
        mark = marks.get(path)
        if mark is None:
            return value
        if isinstance(value, str):
            return value + mark
        if turn and isinstance(value, bool):
            return not value
        return type(value)(mark) if _is_number(value) else mark

    return ChatRecord(
        record.where,
        copy(record.messages, ("messages",)),
        copy(record.tools, ("tools",)),
        {name: copy(value, (name,)) for name, value in record.variables.items()},
    )


def _try(render: Render, record: ChatRecord, index: int) -> tuple[str, str] | None:
    """None if the template refuses the record: templates raise what they like."""
    try:
        return render(record, index)
    except Exception:
        return None


def _in(mark: str, texts: tuple[str, str] | None) -> bool:
    return texts is not None and mark in texts[1].casefold()


def _change(
    record: ChatRecord,
    path: Path,
    mark: str,
    index: int,
    texts: tuple[str, str],
    render: Render,
) -> str:
    """What of a change of this one value shows: its "mark", another "text", or "" for nothing."""
    changed = _try(render, _planted(record, {path: mark}, turn=True), index)
    # A template that refuses the mark has read it.
    if changed is None or _in(mark, changed):
        return "mark"
    # A setting may change the prompt only.
    return "text" if changed != texts else ""


def _own(value: str, prompt: str, whole: str) -> _Text:
    """The answer's own text, from where `value` may begin: prompts may say its first words."""
    return _Text(whole[max(0, len(prompt) - 2 * len(value)) :])


class _Text:
    """A rendered text, without regard to case and white space."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._plain: tuple[str, str] | None = None

    def holds(self, value: str) -> bool:
        """Whether all of `value` is there, be it as it is or escaped in a common way."""
        if value in self._text:
            return True
        if self._plain is None:
            self._plain = _plain(self._text), _plain(html.unescape(self._text))
        plain = self._plain
        return any(_plain(written) in text for written in _written(value) for text in plain)


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()


def _written(value: str) -> Iterator[str]:
    yield value
    for ascii in (False, True):
        escaped = json.dumps(value, ensure_ascii=ascii)[1:-1]
        yield escaped
        # As Jinja's own tojson does.
        yield re.sub("[<>&']", lambda match: f"\\u{ord(match[0]):04x}", escaped)
    yield repr(value)[1:-1]


def _collapsed(missing: list[Path], leaves: list[Path]) -> list[Path]:
    """The fewest paths that hold `missing` and no other leaf, at most down to a message's field."""
    lost = set(missing)
    collapsed: dict[Path, None] = {}
    for path in missing:
        least = 3 if path[0] == "messages" else 1
        for length in range(least, len(path) + 1):
            under = [leaf for leaf in leaves if leaf[:length] == path[:length]]
            if lost.issuperset(under):
                collapsed[path[:length]] = None
                break
    return list(collapsed)
