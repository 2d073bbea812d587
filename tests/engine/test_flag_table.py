"""The launcher's table of SGLang's flags is the installed SGLang's."""

from __future__ import annotations

import json
import subprocess
import sys

from ps_sglang.launch import flag_check


def test_the_table_is_what_sglang_takes() -> None:
    """In a process of its own: describing them sets an environment variable."""
    command = [sys.executable, "-m", "ps_sglang.engine.compat.flags"]
    described = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(described) == json.loads(flag_check._TABLE.read_text())
