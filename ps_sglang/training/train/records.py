"""Training data as records, every row checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ps_sglang.errors import DataError
from ps_sglang.training.train.fields import unsound
from ps_sglang.training.train.learned import ALL_MARKS, is_learned, mark_problems
from ps_sglang.training.train.sources import read_rows

_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
_SHOWN: Final = 10
# Columns beside messages, or prompt and completion, in which data sets keep parts of what is said.
# Others (an id, a source) are about a row, and told once.
_SAID_BESIDE: Final = frozenset(
    [
        *("system", "system_prompt", "context", "instruction", "input", "history", "prompt"),
        *("completion", "response", "output", "answer", "chosen", "rejected", "documents"),
        *("tools", "functions", "function_call", "tool_calls", "tool_choice", "tool_responses"),
        *("thinking", "reasoning", "reasoning_content", "thought", "chat_template_kwargs"),
        *("response_format", "image", "images", "video", "videos", "audio", "audios"),
    ]
)


@dataclass(frozen=True)
class TextRecord:
    """A prompt and its completion, as text. `where` names the row for a person.

    `unread` are fields of the row that hold more of what is said.
    """

    where: str
    prompt: str
    completion: str
    learned: bool = True
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChatRecord:
    """A conversation in OpenAI's format; the last message is an assistant's.

    `variables` go to the chat template beside messages and tools. The assistant's messages of
    index `unlearned` are read and not learned.
    """

    where: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    variables: dict[str, Any] = field(default_factory=dict)
    unlearned: frozenset[int] = frozenset()
    unread: tuple[str, ...] = ()


Record = TextRecord | ChatRecord


class Problems:
    """What is wrong with a data set, collected so that all of it can be mended at once."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._lines: list[str] = []

    def add(self, where: str, what: str) -> None:
        self._lines.append(f"{where}: {what}")

    def raise_any(self) -> None:
        if not self._lines:
            return
        more = len(self._lines) - _SHOWN
        lines = self._lines[:_SHOWN] + ([f"and {more} more"] if more > 0 else [])
        count = f"{len(self._lines)} problem{'s' if self._lines[1:] else ''}"
        raise DataError("\n  ".join([f"{self._source} has {count}:", *lines]))


@dataclass(frozen=True)
class DataSet:
    """All records of one source, and the digest of what they say (`data1:` and 64 hex digits).

    `columns` are those about rows, which no record has.
    """

    source: str
    records: list[Record]
    digest: str
    columns: tuple[str, ...] = ()


def read_data(source: str) -> DataSet:
    """The records of a `.jsonl` or `.parquet` file, of a saved data set, or of one on the hub.

    Raises DataError that names each row and field at fault.
    """
    problems = Problems(source)
    records: list[Record] = []
    hasher = hashlib.blake2b(digest_size=32)
    columns: dict[str, None] = {}
    for where, row in read_rows(source, problems.add):
        if wrong := list(unsound(row)):
            for problem in wrong:
                problems.add(where, problem)
            continue
        hasher.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        record = _record(where, row, problems)
        if record is not None:
            records.append(record)
            columns |= dict.fromkeys(_about(row))
    problems.raise_any()
    if not records:
        raise DataError(f"{source} has no rows")
    return DataSet(source, records, f"data1:{hasher.hexdigest()}", tuple(columns))


def _record(where: str, row: dict[str, Any], problems: Problems) -> Record | None:
    row_problems = list(mark_problems(row))
    if row.get("messages") is not None:
        row = row | {"tools": _parsed(row.get("tools"))}
        row_problems += _chat_problems(row)
        record: Record = _chat(where, row) if not row_problems else ChatRecord(where, [], None)
    elif "prompt" in row or "completion" in row:
        row_problems += _text_problems(row)
        unread = _unread(row, ("prompt", "completion"))
        texts = row.get("prompt", ""), row.get("completion", "")
        record = TextRecord(where, *texts, learned=is_learned(row), unread=unread)
    else:
        row_problems = [
            f"needs messages, or prompt and completion; has {', '.join(row) or 'nothing'}"
        ]
    for problem in row_problems:
        problems.add(where, problem)
    return None if row_problems else record


def _chat(where: str, row: dict[str, Any]) -> ChatRecord:
    variables = dict(row.get("chat_template_kwargs") or {})
    if row.get("documents"):
        variables["documents"] = row["documents"]
    messages = row["messages"]
    unlearned = {
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and not (is_learned(message) and is_learned(row))
    }
    contents = [message.get("content") for message in messages]
    unread = [
        name
        for name in _unread(row, ("tools", "documents", "chat_template_kwargs"))
        # A column may repeat a message.
        if row[name] not in contents
    ]
    return ChatRecord(
        where, _messages(row), row["tools"], variables, frozenset(unlearned), tuple(unread)
    )


def _unread(row: dict[str, Any], read: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in row if name in _SAID_BESIDE and name not in read and row[name])


def _about(row: dict[str, Any]) -> Iterator[str]:
    return (name for name in row if name not in {"messages", *_SAID_BESIDE, *ALL_MARKS})


def _parsed(value: Any) -> Any:
    """What a column of JSON text says; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _text_problems(row: dict[str, Any]) -> Iterator[str]:
    for name in ("prompt", "completion"):
        value = row.get(name)
        if not isinstance(value, str):
            yield f"{name} must be a string, not {_kind(value)}"
        elif not value.strip():
            yield f"{name} is empty" + ("; there is no answer to train" * (name != "prompt"))


def _chat_problems(row: dict[str, Any]) -> Iterator[str]:
    messages, tools = row["messages"], row.get("tools")
    if not isinstance(messages, list) or not messages:
        yield f"messages must be a list of at least one message, not {_kind(messages)}"
        return
    for index, message in enumerate(messages):
        for problem in _message_problems(message):
            yield f"messages[{index}]{problem}"
    if isinstance(messages[-1], dict) and messages[-1].get("role") in _ROLES:
        if messages[-1]["role"] != "assistant":
            role = messages[-1]["role"]
            yield f"messages[{len(messages) - 1}].role is {role!r}; the last must be an assistant's"
        elif len(messages) == 1:
            yield "messages holds one answer and nothing that it answers"
    if tools is not None and not (isinstance(tools, list) and all(map(_is_object, tools))):
        yield f"tools must be a list of objects, not {_kind(tools)}"
    yield from unsound(tools, ("tools",))
    if not isinstance(row.get("chat_template_kwargs") or {}, dict):
        yield f"chat_template_kwargs must be an object, not {_kind(row['chat_template_kwargs'])}"


def _message_problems(message: Any) -> Iterator[str]:
    if not isinstance(message, dict):
        yield f" must be an object, not {_kind(message)}"
        return
    role, content, calls = (message.get(key) for key in ("role", "content", "tool_calls"))
    for problem in mark_problems(message, answers=role == "assistant"):
        yield f".{problem}"
    if role not in _ROLES:
        yield f".role is {role!r}; one of {', '.join(_ROLES)}"
    if calls is not None and not _are_calls(calls):
        yield ".tool_calls must be a list of objects with function.name and function.arguments"
    elif calls:
        for index, call in enumerate(calls):
            start = ("", "tool_calls", index, "function", "arguments")
            yield from unsound(_parsed(call["function"]["arguments"]), start)
    if content is None and calls:
        return
    if not isinstance(content, str):
        yield f".content must be a string, not {_kind(content)}"
    elif role == "assistant" and not content.strip() and not calls:
        yield ".content is empty; there is no answer to train"


def _are_calls(calls: Any) -> bool:
    try:
        return all(isinstance(call["function"]["name"], str) for call in calls) and all(
            _is_object(_arguments(call["function"]["arguments"])) for call in calls
        )
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def _messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """As a server hands them to the chat template: no null content, arguments as objects.

    Keys that are None are left out, as are marks of what is learned.
    """
    messages = []
    for message in row["messages"]:
        message = {k: v for k, v in message.items() if v is not None and k not in ALL_MARKS}
        message.setdefault("content", "")
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [_call(call) for call in calls]
        messages.append(message)
    return messages


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return call | {"function": function | {"arguments": _arguments(function["arguments"])}}


def _arguments(arguments: Any) -> Any:
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    return f"{type(value).__name__} {json.dumps(value, default=str)[:60]}"
