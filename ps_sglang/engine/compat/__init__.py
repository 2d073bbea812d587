"""Everything this project takes from inside SGLang, and the version it was written for.

No other module imports `sglang.srt`. `platform` holds what the platform entry point may
import while SGLang itself is still importing; `srt` holds the rest.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

SGLANG_VERSION: Final = "0.5.23"


def require_supported_sglang() -> None:
    """Refuse a version the hooks were not written for.

    Raises SystemExit if the installed SGLang is not `SGLANG_VERSION`. SGLang swallows other
    exceptions of a plugin and would go on without its hooks.
    """
    installed = version("sglang")
    if installed != SGLANG_VERSION:
        raise SystemExit(
            f"ps_sglang hooks SGLang {SGLANG_VERSION}, but {installed} is installed: "
            f"pip install sglang=={SGLANG_VERSION}, or unset PS_SGLANG_ENABLE to run stock SGLang"
        )
