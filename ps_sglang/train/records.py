"""Reading training data: JSON lines or a Hugging Face data set, every row checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ps_sglang.errors import DataError

_HUB_NAME: Final = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?::([\w.\[\]%:-]+))?")
_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
_SHOWN: Final = 10


@dataclass(frozen=True)
class TextRecord:
    """A prompt and its completion, as text. `where` names the row for a person."""

    where: str
    prompt: str
    completion: str


@dataclass(frozen=True)
class ChatRecord:
    """A conversation in OpenAI's format; the last message is an assistant's."""

    where: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None


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
    """All records of one source, and the digest of what they say (`data1:` and 64 hex digits)."""

    source: str
    records: list[Record]
    digest: str


def read_data(source: str) -> DataSet:
    """The records of a `.jsonl` file or of a data set on the hub.

    Raises DataError that names each row and field at fault.
    """
    problems = Problems(source)
    records: list[Record] = []
    hasher = hashlib.blake2b(digest_size=32)
    for where, row in _rows(source, problems):
        hasher.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        record = _record(where, row, problems)
        if record is not None:
            records.append(record)
    problems.raise_any()
    if not records:
        raise DataError(f"{source} has no rows")
    return DataSet(source, records, f"data1:{hasher.hexdigest()}")


def _rows(source: str, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    path = Path(source).expanduser()
    if path.is_file():
        yield from _json_lines(path, problems)
    elif match := _HUB_NAME.fullmatch(source):
        for index, row in enumerate(_hub(source, match[1], match[2] or "train")):
            yield f"{source}[{index}]", row
    else:
        raise DataError(f"no file {source}; give a .jsonl file or a data set's name (org/name)")


def _json_lines(path: Path, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                problems.add(where, f"is not JSON: {error}")
                continue
            if isinstance(row, dict):
                yield where, row
            else:
                problems.add(where, f"must be a JSON object, not {type(row).__name__}")


def _hub(source: str, name: str, split: str) -> Any:
    # Imported late: most runs read local files.
    import datasets
    import httpx

    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError, httpx.HTTPError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"no file {source}, and the data set could not be loaded ({reason}); "
            "give the path of a .jsonl file instead"
        ) from error


def _record(where: str, row: dict[str, Any], problems: Problems) -> Record | None:
    if row.get("messages") is not None:
        found = list(_chat_problems(row))
        record: Record = ChatRecord(where, _messages(row) if not found else [], row.get("tools"))
    elif "prompt" in row or "completion" in row:
        found = list(_text_problems(row))
        record = TextRecord(where, row.get("prompt", ""), row.get("completion", ""))
    else:
        found = [f"needs messages, or prompt and completion; has {', '.join(row) or 'nothing'}"]
    for problem in found:
        problems.add(where, problem)
    return None if found else record


def _text_problems(row: dict[str, Any]) -> Iterator[str]:
    for field in ("prompt", "completion"):
        value = row.get(field)
        if not isinstance(value, str):
            yield f"{field} must be a string, not {_kind(value)}"
        elif not value.strip():
            yield f"{field} is empty" + ("; there is no answer to train" * (field != "prompt"))


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


def _message_problems(message: Any) -> Iterator[str]:
    if not isinstance(message, dict):
        yield f" must be an object, not {_kind(message)}"
        return
    role, content, calls = (message.get(key) for key in ("role", "content", "tool_calls"))
    if role not in _ROLES:
        yield f".role is {role!r}; one of {', '.join(_ROLES)}"
    if calls is not None and not _are_calls(calls):
        yield ".tool_calls must be a list of objects with function.name and function.arguments"
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
    except (KeyError, TypeError, ValueError):
        return False


def _messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """As a server hands them to the chat template: no null content, arguments as objects.

    Keys that are None are left out: a data set's table has every key in every row.
    """
    messages = []
    for message in row["messages"]:
        message = {key: value for key, value in message.items() if value is not None}
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
