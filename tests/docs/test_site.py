"""The pages as a site: every link leads somewhere, and every sentence is short enough."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import PAGES, ROOT


def test_the_site_builds_without_a_dead_link(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr


def test_readme_links_to_files_that_are_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


def test_half_of_the_sentences_have_at_most_16_words() -> None:
    lengths = []
    for page in PAGES:
        text = re.sub(r"(?s:```.*?```|<!--.*?-->)|^[|#].*$", "", page.read_text(), flags=re.M)
        for paragraph in re.split(r"\n\s*\n|^- ", text, flags=re.M):
            sentences = re.split(r"(?<=[.:!?])\s+", " ".join(paragraph.split()))
            lengths += [len(one.split()) for one in sentences if one]
    assert statistics.median(lengths) <= 16


def test_messages_of_the_troubleshooting_page_are_the_products() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "ps_sglang").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)  # texts that go over several lines
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.M)
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    assert quoted
    assert [text for text in quoted if text not in joined] == []
