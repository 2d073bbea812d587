"""What of SGLang's answers does not have the shape that OpenAI's clients accept."""

from __future__ import annotations

from typing import Any

from ps_sglang.engine.hooking import replace


@replace("entrypoints.openai.serving_chat.build_endpoint_weight_version_metadata", "meta_info")
@replace(
    "entrypoints.openai.serving_completions.build_endpoint_weight_version_metadata", "meta_info"
)
def no_metadata(meta_info: dict[str, Any]) -> None:
    """Instead of `build_endpoint_weight_version_metadata`: OpenAI's `metadata` stays null.

    It maps text to text. SGLang puts a list there, the versions of the weights,
    which strict clients refuse. `meta_info` of /generate has it too, where SGLang's clients look.
    """
    return None
