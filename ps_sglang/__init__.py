"""PrefillShare for SGLang: one base prefill serves many fine-tuned decoders."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("ps-sglang")
