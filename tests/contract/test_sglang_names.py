"""Names that are read out of SGLang's files are those that SGLang has when it is imported."""

from __future__ import annotations

import subprocess
import sys

from ps_sglang import sglang_names as names


def test_parsers() -> None:
    from sglang.srt.function_call.function_call_parser import FunctionCallParser
    from sglang.srt.parser.reasoning_parser import ReasoningParser

    assert set(names.tool_call_parsers()) == {
        names.AUTO,
        *FunctionCallParser.ToolCallParserEnum,
    }
    assert set(names.reasoning_parsers()) == {
        names.AUTO,
        *ReasoningParser.DetectorMap,
    }


def test_chat_templates() -> None:
    from sglang.srt.parser.conversation import chat_templates
    from sglang.srt.parser.python_chat_template import PYTHON_CHAT_TEMPLATES

    assert set(names.chat_templates()) == {*chat_templates, *PYTHON_CHAT_TEMPLATES}


def test_nothing_is_imported_for_them() -> None:
    look = (
        "import sys; from ps_sglang import sglang_names as names; names.tool_call_parsers(); "
        "names.reasoning_parsers(); names.chat_templates(); "
        "print([name for name in ('sglang', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
