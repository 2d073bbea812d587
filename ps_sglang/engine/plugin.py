"""Entry point of group `sglang.srt.plugins`: inert unless `PS_SGLANG_ENABLE=1`."""

from __future__ import annotations

import os

from ps_sglang.engine.settings import is_enabled


def register() -> None:
    """Called once in each SGLang process, before it starts."""
    if not is_enabled(os.environ):
        return
    from ps_sglang.engine.compat import require_supported_sglang

    require_supported_sglang()
    from ps_sglang.cluster_key import from_environment
    from ps_sglang.errors import UsageError

    try:
        from_environment(os.environ)
    except UsageError as error:
        raise SystemExit(str(error)) from error
    from ps_sglang.engine import attention, events, hooks, lora
    from ps_sglang.engine.sampling import seeds
    from ps_sglang.engine.transfer import access, backend
    from ps_sglang.engine.tree import base_token_tree

    attention.register()
    lora.register()
    seeds.register()
    backend.register()
    access.register()
    base_token_tree.register()
    events.register()
    hooks.install()
