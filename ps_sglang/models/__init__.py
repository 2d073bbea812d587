"""Models by name: local folders, the demo models and hub ids."""

from __future__ import annotations

from ps_sglang.models.resolve import NamedModel, resolve, resolve_all

__all__ = ["NamedModel", "resolve", "resolve_all"]
