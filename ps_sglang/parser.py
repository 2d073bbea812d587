"""Command lines that fill in a settings object, which alone knows the defaults."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn, get_args

from ps_sglang.errors import UsageError


def user_path(text: str) -> Path:
    """A path as a user types it, for argparse."""
    return Path(text).expanduser()


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

    def add_settings(
        self,
        settings: type,
        flags: Mapping[str, tuple[Any, str, str]],
        choices: Mapping[str, tuple[Any, str]],
        switches: Mapping[str, str],
    ) -> None:
        """A flag for each field of the dataclass `settings` that is in one of the three.

        `flags` gives type, metavar and help; `choices` a Literal type and help; `switches` help.
        """
        for field in fields(settings):
            flag = f"--{field.name.replace('_', '-')}"
            required = field.default is MISSING
            shown = "" if required or field.default in ("", None) else f" (default {field.default})"
            if field.name in switches:
                self.add_argument(flag, action="store_true", help=switches[field.name])
            elif field.name in choices:
                kind, text = choices[field.name]
                self.add_argument(flag, choices=get_args(kind), help=text + shown)
            elif field.name in flags:
                kind, metavar, text = flags[field.name]
                self.add_argument(
                    flag, type=kind, metavar=metavar, required=required, help=text + shown
                )

    def error(self, message: str) -> NoReturn:
        """Raise what the commands print as their one line."""
        raise UsageError(f"{message} (see {self.prog} --help)")
