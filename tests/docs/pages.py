"""The commands of README and docs, as a reader would run them, page by page."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(
    r"^(?:<!-- not run here: (?P<reason>[^>]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_LAUNCH = re.compile(
    r"(?:ps-sglang launch|python -m ps_sglang\.launch) (?P<arguments>.*)", re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block. `reason` says why it is not run, None if it is."""

    language: str
    text: str
    reason: str | None

    @property
    def launches(self) -> list[str] | None:
        """The launcher's arguments, if that is what the block is."""
        match = _LAUNCH.fullmatch(self.text.strip())
        return None if match is None else shlex.split(match["arguments"].replace("\\\n", " "))


def blocks(page: Path) -> list[Block]:
    """The commands and programs of a page, in order."""
    found = [
        Block(match["language"], match["text"], match["reason"])
        for match in _BLOCK.finditer(page.read_text())
    ]
    return [block for block in found if block.language in ("bash", "python")]
