"""LoRA decoders: several adapters of the base on one worker share weights, batch and KV pages."""

from __future__ import annotations

from typing import Any, Final

from ps_sglang.engine.compat.srt import add_lora_backend_choices, register_lora_backend

NAME: Final = "grouped"


def register() -> None:
    """Offer our backend for CPUs as `--lora-backend grouped`."""
    add_lora_backend_choices([NAME])
    register_lora_backend(NAME)(_backend)


def _backend() -> Any:
    """The class; importing it compiles its loop, which only a worker with adapters needs."""
    from ps_sglang.engine.lora.backend import GroupedLoRABackend

    return GroupedLoRABackend
