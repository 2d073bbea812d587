"""SGLang's frontend language over a ps_sglang cluster: several decoders in one conversation.

    backend = PrefillShareBackend("http://127.0.0.1:8000")

    @sgl.function
    def solve(s, question):
        s += sgl.user(question)
        s += sgl.assistant(by("planner", sgl.gen("plan", max_tokens=64)))
        s += sgl.user("Now do it.")
        s += sgl.assistant(by("coder", sgl.gen("code", max_tokens=256)))

    solve.run(question="...", backend=backend)

A program for one decoder needs nothing of this: `sgl.RuntimeEndpoint(url + "/models/planner")`.
"""

from __future__ import annotations

from ps_sglang.frontend.address import by
from ps_sglang.frontend.backend import PrefillShareBackend

__all__ = ["PrefillShareBackend", "by"]
