"""PrefillShare for SGLang: one base prefill serves many fine-tuned decoders."""

from importlib.metadata import version

__version__ = version("ps-sglang")
