"""Models by name: local folders, the demo models, hub ids; and tiny random models for tests."""

from __future__ import annotations

from ps_sglang.models.resolve import NamedModel, resolve, resolve_all

__all__ = ["NamedModel", "resolve", "resolve_all"]
