"""What tests of tasks share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import metadata

import pytest

from ps_sglang.training.tasks import Item
from ps_sglang.training.tasks.packages import VERSIONS


def needs(package: str) -> pytest.MarkDecorator:
    """Skips where the package, in its version, is not installed."""
    try:
        missing = metadata.version(package) != VERSIONS[package]
    except metadata.PackageNotFoundError:
        missing = True
    return pytest.mark.skipif(missing, reason=f"needs {package}=={VERSIONS[package]}")


def digest(items: Sequence[Item]) -> str:
    """16 hex digits of everything that the items say."""
    rows = json.dumps([item.to_row() for item in items], sort_keys=True)
    return hashlib.sha256(rows.encode()).hexdigest()[:16]
