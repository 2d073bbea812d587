"""Calls that change a running cluster, and what their commands have in common."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ps_sglang.errors import PsSglangError, UsageError
from ps_sglang.gateway_http import (
    KEY_VARIABLE,
    Credentials,
    GatewayRefused,
    GatewayUnreachable,
    Json,
    call,
    no_gateway,
)
from ps_sglang.progress import progress

GATEWAY: Final = "http://127.0.0.1:8000"
"""Where a command looks for the gateway unless it is told."""

# A worker finishes its requests before it changes, and reads a whole checkpoint.
TIMEOUT_S: Final = 3600.0


class RefusedError(UsageError):
    """The gateway refused a change; the message is its reason, `code` the error's code."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class GatewayAdmin:
    """The gateway at `url`. All methods raise UsageError, at last after `timeout_s`.

    By then a call that changes something may have succeeded, or may yet. Without `credentials` it
    shows those of the environment.
    """

    def __init__(
        self, url: str, timeout_s: float = TIMEOUT_S, credentials: Credentials | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._credentials = credentials

    def list(self, path: str, key: str) -> list[Json]:
        """The list under `key` in the answer to a GET."""
        answer = self.call("GET", path)
        try:
            found: list[Json] = answer[key]
        except (KeyError, TypeError) as error:  # some other server
            raise UsageError(no_gateway(self._url, error)) from error
        return found

    def call(self, method: str, path: str, body: Json | None = None) -> Json:
        """The answer to one request; RefusedError if the gateway refuses it."""
        try:
            return call(
                self._url + path,
                body,
                method=method,
                timeout_s=self._timeout_s,
                credentials=self._credentials,
            )
        except GatewayRefused as error:
            status = "" if error.is_explained else f"status {error.status}: "
            # Whoever has a key may have forgotten to give it.
            hint = f" (the key is read from ${KEY_VARIABLE})" if error.status in (401, 403) else ""
            raise RefusedError(status + error.reason + hint, error.code) from error
        except GatewayUnreachable as error:
            raise UsageError(no_gateway(self._url, error)) from error


def add_gateway(parser: argparse.ArgumentParser) -> None:
    """The option of a command that says which gateway it asks."""
    parser.add_argument(
        "--gateway",
        metavar="URL",
        default=GATEWAY,
        help=f"the gateway, as in the launcher's ready line (default {GATEWAY})",
    )


def exit_status(command: Callable[[], None]) -> int:
    """Run a command: 0 if it is done, 1 if the gateway refused it, 2 if its arguments are wrong."""
    try:
        command()
    except RefusedError as error:
        progress(f"error: {error}")
        return 1
    except PsSglangError as error:
        progress(f"error: {error}")
        return 2
    return 0


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns as wide as they need."""
    print(*table(rows), sep="\n")


def table(rows: Sequence[Sequence[str]], names: int | None = None) -> Iterator[str]:
    """The lines of rows, in columns as wide as they need; those behind `names` have numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.ljust(width) if names is None or number < names else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def path_on_worker(text: str) -> str:
    """A path that a worker is told: one that is here is made absolute, others are its business."""
    path = str(Path(text).expanduser())
    return os.path.abspath(path) if Path(path).exists() else path
