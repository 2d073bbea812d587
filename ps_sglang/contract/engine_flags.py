"""Engine flags on which pages, or the tokens of a prompt, depend: equal on all workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ps_sglang.errors import ContractError

_PAGES = ("--page-size", "--kv-cache-dtype", "--dtype")
_PROMPTS = ("--chat-template", "--hf-chat-template-name", "--default-chat-template-kwargs")
# Most parsers only read answers. With these SGLang 0.5.23 writes the prompt in another way, too.
_PROMPT_PARSERS = {
    "--tool-call-parser": ("deepseekv32", "deepseekv4", "deepseekv41", "kimi_k3", "muse"),
    "--reasoning-parser": ("hunyuan", "response_template"),
}
SHARED_FLAGS = (*_PAGES, *_PROMPTS, *_PROMPT_PARSERS)


def check_engine_flags(workers: Mapping[str, Sequence[str]]) -> None:
    """Refuse SGLang flags (worker -> argument list) that give workers different pages or prompts.

    Raises ContractError listing every flag that differs, with each worker's value.
    """
    rows = []
    for flag in SHARED_FLAGS:
        values = {name: _value(flag, arguments) for name, arguments in workers.items()}
        decisive = _PROMPT_PARSERS.get(flag)
        if decisive is not None and not any(value in decisive for value in values.values()):
            continue
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{name} {v or '(default)'}" for name, v in values.items())
            rows.append(f"{flag}: {shown}")
    if rows:
        message = (
            "workers that share a cache need the same engine flags; give these for all workers:"
        )
        raise ContractError("\n  ".join([message, *rows]), tuple(rows))


def _value(flag: str, arguments: Sequence[str]) -> str | None:
    """The last value of `--flag value` or `--flag=value`, as argparse takes it."""
    value = None
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            value = arguments[index + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
    return value
