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
    "mooncake": ("mooncake-transfer-engine-cuda13",),
    "nixl": ("nixl",),
}
_MODULES: Final = {"mooncake-transfer-engine-cuda13": "mooncake"}


def require_extra(extra: str, what: str) -> None:
    """Raise MissingPackageError unless all packages of `extra` are there; `what` needs them."""
    if lacks := missing(extra):
        raise MissingPackageError(f"{what} needs {lacks}")


def missing(extra: str) -> str | None:
    """The packages of `extra` that are not there and what installs them, None if all are."""
    lacks = [package for package in EXTRAS[extra] if not _is_installed(package)]
    if not lacks:
        return None
    return (
        f"{', '.join(lacks)}: pip install 'ps-sglang[{extra}]', in a checkout "
        f"pip install -e '.[{extra}]'"
    )


def module_of(package: str) -> str:
    """The module that one of these packages brings."""
    return _MODULES.get(package) or package.replace("-", ".")


def _is_installed(package: str) -> bool:
    try:
        return find_spec(module_of(package)) is not None
    except ModuleNotFoundError:  # not even the package around the module is there
        return False
