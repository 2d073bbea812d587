"""Every function of SGLang that the plugin hooks.

`python -m ps_sglang.engine.hooks` prints what is hooked, why, and for which signature.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterable
from importlib import import_module

from ps_sglang.engine.compat.srt import HookRegistry, HookType
from ps_sglang.engine.hooking import Hook, declared

# In the order of a request's life; each declares its hooks beside their functions.
for _module in (
    "transfer.backend", "transfer.access", "guard.admission", "guard.scheduling",
    "handoff.registration", "handoff.base_prefix", "handoff.prefill", "handoff.streams",
    "handoff.priority", "handoff.decode", "lora.adapters", "lora.scheduling", "lora.segments",
    "lora.pool", "sampling.seeds", "sampling.murmur", "sampling.forced", "events", "trace",
    "aggregated", "access", "output_ids",
    "worker_info", "swap", "answers", "waiting",
):  # fmt: skip
    import_module(f"ps_sglang.engine.{_module}")

HOOKS = tuple(declared)


def incompatibilities(hooks: Iterable[Hook] = HOOKS) -> list[str]:
    """What changed in SGLang's hooked functions, one sentence each; empty if nothing did."""
    return [text for hook in hooks if (text := _incompatibility(hook)) is not None]


def _incompatibility(hook: Hook) -> str | None:
    try:
        target = pkgutil.resolve_name(hook.target)
    except (ImportError, AttributeError) as error:
        return f"{hook.target} does not exist ({error})"
    if isinstance(target, type):
        return None
    parameters = tuple(inspect.signature(target).parameters)
    if parameters != hook.parameters:
        return f"{hook.target} takes {parameters}, the hook was written for {hook.parameters}"
    return None


def install() -> None:
    """Hand every hook to SGLang's registry.

    Raises SystemExit if a hooked function is not the one that its hook was written for.
    """
    changed = incompatibilities()
    if changed:
        raise SystemExit("ps_sglang cannot hook this SGLang: " + "; ".join(changed))
    for hook in HOOKS:
        HookRegistry.register(hook.target, hook.function, HookType(hook.kind))


def main() -> None:
    """Print the list; ends with 1 if a hooked function has changed."""
    for hook in HOOKS:
        print(f"{hook.target}({', '.join(hook.parameters)})")
        print(f"    {hook.kind} {hook.function.__module__}.{hook.function.__name__}: {hook.reason}")
    changed = incompatibilities()
    for text in changed:
        print(f"CHANGED: {text}")
    raise SystemExit(bool(changed))


if __name__ == "__main__":
    main()
