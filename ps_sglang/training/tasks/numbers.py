"""The final number of an answer, found by one rule for every system that is compared."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

FORMAT: Final = "Work it out in short steps and end with #### and the number."
_NUMBER: Final = r"-?\$?\d[\d,]*(?:\.\d+)?"
_MARKED: Final = re.compile(rf"####\s*({_NUMBER})")
_ANY: Final = re.compile(_NUMBER)
_LONGEST: Final = 10_000


def final_number(answer: str) -> Decimal | None:
    """The number after the first `####`, else the last number in the text; None without any.

    Thousands' commas and a dollar sign do not matter, nor do trailing zeros.
    """
    text = answer[:_LONGEST]
    marked = _MARKED.search(text)
    numbers = [marked[1]] if marked else _ANY.findall(text)
    return Decimal(numbers[-1].replace(",", "").replace("$", "")) if numbers else None
