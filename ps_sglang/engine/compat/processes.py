"""Everything that SGLang's three processes import, to be shared by forks (0.5.23).

`serving_responses` and `prefill` are imported by SGLang only when a server starts.
"""

from __future__ import annotations

import sglang.srt.disaggregation.decode
import sglang.srt.disaggregation.prefill
import sglang.srt.entrypoints.http_server
import sglang.srt.entrypoints.openai.serving_responses
import sglang.srt.managers.detokenizer_manager
import sglang.srt.managers.scheduler
import sglang.srt.models.registry  # noqa: F401
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.utils.hf_transformers.tokenizer import get_tokenizer

__all__ = ["HookRegistry", "HookType", "get_tokenizer", "load_plugins"]
