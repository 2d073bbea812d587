"""Packages that a server does not need, by the extra of this package that brings them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final

from ps_sglang.errors import MissingPackageError

# As in pyproject.toml; a test compares the two.
EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "train": ("accelerate", "peft", "datasets"),
    "demo": ("openai",),
    "otel": ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
    "ray": ("ray",),
}


def require_extra(extra: str, what: str) -> None:
    """Raise MissingPackageError unless all packages of `extra` are there; `what` needs them."""
    missing = [package for package in EXTRAS[extra] if not _is_installed(package)]
    if missing:
        raise MissingPackageError(
            f"{what} needs {', '.join(missing)}: pip install 'ps-sglang[{extra}]', in a checkout "
            f"pip install -e '.[{extra}]'"
        )


def module_of(package: str) -> str:
    """The module that one of these packages brings."""
    return package.replace("-", ".")


def _is_installed(package: str) -> bool:
    try:
        return find_spec(module_of(package)) is not None
    except ModuleNotFoundError:  # not even the package around the module is there
        return False
