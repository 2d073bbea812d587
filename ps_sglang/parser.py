"""Command lines that fill in a settings object, which alone knows the defaults."""

from __future__ import annotations

import argparse
from typing import NoReturn

from ps_sglang.errors import UsageError


class SettingsParser(argparse.ArgumentParser):
    """Only what is given appears in the result; what is wrong is a UsageError."""

    def __init__(
        self, prog: str, *, description: str, epilog: str, usage: str | None = None
    ) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise what the commands print as their one line."""
        raise UsageError(f"{message} (see {self.prog} --help)")
