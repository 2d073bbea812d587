"""What a decoder says tells its name and how much was said before.

After `n` earlier answers in the prompt, decoder `a` says `<a:n+1>`. Set `reply` for anything else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from tests.support.standin_gateway import Json, RefusedError, StandInGateway

Reply = Callable[[str, Json], str]


def counted(decoder: str, body: Json) -> str:
    """The default reply."""
    return f"<{decoder}:{body['text'].count('<') + 1}>"


class Gateway(StandInGateway):
    """Serves decoders a, b and c.

    With `barrier`, no answer is given before as many requests are waiting.
    """

    def __init__(self, tokenizer: Path) -> None:
        super().__init__(("a", "b", "c"))
        self.reply: Reply = counted
        self.barrier: threading.Barrier | None = None
        # A name from which SGLang would guess a template, and wrongly.
        self.model_info = {"model_path": "/models/llama-2-chat", "tokenizer_path": str(tokenizer)}

    @property
    def prompts(self) -> list[tuple[str, str]]:
        """What came in: (decoder, prompt)."""
        return [(decoder, body["text"]) for decoder, body in self.asked]

    @property
    def flushed(self) -> int:
        """How often the caches were to be emptied."""
        return sum(path == "/flush_cache" for _, path, _ in self.calls)

    def generate(self, decoder: str, body: Json) -> Json:
        if self.barrier is not None and body["sampling_params"]["max_new_tokens"] > 1:
            self.barrier.wait(timeout=30)
        text = self.reply(decoder, body)
        if text == "error":
            raise RefusedError(500, "the engine is on fire")
        meta = {
            "prompt_tokens": len(body["text"]),
            "cached_tokens": 5,
            "cached_tokens_details": {"device": 2, "host": 3},
        }
        return {"text": text, "meta_info": meta}
