"""The Python code in an answer, found by one rule for every system that is compared."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Final

_FENCE: Final = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_START: Final = re.compile(r"^(?:def |async def |class |import |from |@)", re.MULTILINE)
_LONGEST: Final = 10_000


def python_in(answer: str) -> str:
    """The first fenced block, else the text from the first definition or import on.

    What follows the last line that makes valid Python is left out, as prose. Text in which no
    code can be found comes back as it is.
    """
    text = answer[:_LONGEST]
    if fenced := _FENCE.search(text):
        text = fenced[1]
    elif start := _START.search(text):
        text = text[start.start() :]
    lines = text.splitlines()
    for end in range(len(lines), 0, -1):
        code = "\n".join(lines[:end])
        if code.strip() and _is_python(code):
            return code
    return text


def _is_python(code: str) -> bool:
    with warnings.catch_warnings():
        # An answer's odd escapes are its own business.
        warnings.simplefilter("ignore")
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True
