"""The folders from which a running cluster may load weights.

Whoever may swap a worker or add a decoder names a path, and workers read whatever lies there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path


def parents(folders: Iterable[Path]) -> tuple[str, ...]:
    """The folders in which these lie, without links and each once.

    A folder of the file system's root stands for itself: its parent would allow everything.
    """
    resolved = [Path(os.path.realpath(folder)) for folder in folders]
    return tuple(
        dict.fromkeys(
            str(one if one.parent == Path(one.anchor) else one.parent) for one in resolved
        )
    )


def refusal(path: str, roots: Sequence[str]) -> str | None:
    """Why nothing may be loaded from `path`, a folder as this machine sees it; None if it may.

    Links and `..` are followed first. What does not exist here is judged by its name alone.
    """
    if not os.path.isabs(path):
        return f"{path!r} is no absolute path"
    try:
        # A `..` behind a link is read in two ways, by the system and by programs.
        readings = {os.path.realpath(one) for one in (path, os.path.normpath(path))}
    except ValueError as error:  # a zero byte, or what is no text
        return f"{path!r} is no path: {error}"
    allowed_roots = [os.path.realpath(root) for root in roots]
    outside = [real for real in readings if not any(_lies_in(real, one) for one in allowed_roots)]
    if not outside:
        return None
    led = "" if outside == [path] else f", which is {outside[0]!r},"
    allowed = f"only from {', '.join(roots)}" if roots else "from no folder"
    return (
        f"{path!r}{led} may not be loaded, {allowed}: start with --model-root FOLDER to allow more"
    )


def _lies_in(path: str, root: str) -> bool:
    return os.path.commonpath((path, root)) == root
