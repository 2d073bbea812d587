"""What litellm gets from the demo, as JSON by the way it was asked for."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import litellm

URL, PROMPT = sys.argv[1:]
litellm.suppress_debug_info = True  # it prints beside the answer otherwise
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": PROMPT}],
    "api_base": f"{URL}/v1",
    "api_key": "none",
    "temperature": 0,
    "max_tokens": 8,
    "max_retries": 0,
}


def refused(**options: Any) -> list[Any]:
    try:
        litellm.completion(**{**ASKED, **options})
    except litellm.exceptions.APIError as error:
        return [type(error).__name__, error.status_code]
    except (litellm.exceptions.BadRequestError, litellm.exceptions.NotFoundError) as error:
        return [type(error).__name__, error.status_code]
    return []


whole = litellm.completion(model="openai/code", **ASKED)
chunks = list(litellm.completion(model="openai/math", stream=True, **ASKED))
later = asyncio.run(litellm.acompletion(model="openai/tools", **ASKED))
print(
    json.dumps(
        {
            "whole": [whole.choices[0].message.content, whole.usage.prompt_tokens],
            "stream": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
            "finish": chunks[-1].choices[0].finish_reason,
            "async": later.choices[0].message.content,
            "unknown model": refused(model="openai/z"),
            "wrong value": refused(model="openai/code", temperature=-1),
            "too long": refused(
                model="openai/code", messages=[{"role": "user", "content": "word " * 20000}]
            ),
        }
    )
)
