"""The file of API keys: one key a line, its secret only as a hash.

    alice sha256=9f86d081... role=user tenant=team-a requests-at-once=8

The name comes first. `role` and `tenant` must be there, limits may be. Empty lines and those that
begin with `#` are comments.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from ps_sglang.errors import UsageError
from ps_sglang.gateway.access.limits import KeyLimits
from ps_sglang.gateway.access.principal import KeyRole, Principal

LIMITS: Final = {field.name.replace("_", "-"): field.name for field in fields(KeyLimits)}
"""Limits as the file names them, and their fields."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,17}")
_NEEDED: Final = ("sha256", "role", "tenant")
_PREFIX: Final = "psk-"
"""So that a secret which turns up where it should not can be searched for."""


@dataclass(frozen=True)
class KeyEntry:
    """One line: whose key it is, and the SHA-256 of its secret in hexadecimal digits."""

    principal: Principal
    digest: str

    def __str__(self) -> str:
        """The line."""
        who = self.principal
        words = [who.name, f"sha256={self.digest}", f"role={who.role}", f"tenant={who.tenant}"]
        return " ".join([*words, *self.limit_words()])

    def limit_words(self) -> Iterator[str]:
        """Its limits, as they stand in the line."""
        for word, field in LIMITS.items():
            if (value := getattr(self.principal.limits, field)) is not None:
                yield f"{word}={value}"


def new_secret() -> str:
    """A key for a client: 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: str) -> str:
    """What the file holds of a secret.

    One plain SHA-256 is enough, as a secret has 256 random bits: no list of likely ones can be
    tried, which is what salts and slow hashes are against.
    """
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def read(path: Path) -> tuple[KeyEntry, ...]:
    """All keys; raises UsageError if the file cannot be read, with every line that is wrong."""
    return _parse(path, _text(path))


def add(path: Path, entry: KeyEntry) -> None:
    """Write one more key, into a new file if there is none; raises UsageError."""
    if name_problem(entry.principal.name) or name_problem(entry.principal.tenant):
        raise UsageError(
            "the names of a key and of its tenant must have 1 to 64 letters, digits or any of "
            f"'._@-', and begin with a letter or digit, not {entry.principal.name!r} and "
            f"{entry.principal.tenant!r}"
        )
    with _locked(path):
        text = _text(path) if path.exists() else ""
        if any(one.principal.name == entry.principal.name for one in _parse(path, text)):
            raise UsageError(
                f"{path} has a key {entry.principal.name!r} already: revoke it, or choose another "
                "name"
            )
        _write(path, [*text.splitlines(), str(entry)])


def revoke(path: Path, name: str) -> None:
    """Take a key away; raises UsageError if there is none of that name."""
    with _locked(path):
        text = _text(path)
        names = [entry.principal.name for entry in _parse(path, text)]
        if name not in names:
            raise UsageError(f"{path} has no key {name!r}; it has {', '.join(names) or 'none'}")
        _write(path, [line for line in text.splitlines() if line.split()[:1] != [name]])


def name_problem(name: str) -> bool:
    """Whether a name is none that the file can hold: names go to logs and metrics, too."""
    return _NAME.fullmatch(name) is None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise UsageError(f"keys file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"keys file {path}: it is no text") from error


def _parse(path: Path, text: str) -> tuple[KeyEntry, ...]:
    entries: list[KeyEntry] = []
    problems = []
    names: set[str] = set()
    digests: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            entry = _entry(line)
            if entry.principal.name in names:
                raise ValueError(f"the name {entry.principal.name!r} is there already")
            if entry.digest in digests:
                raise ValueError("another line has the same sha256")
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        names.add(entry.principal.name)
        digests.add(entry.digest)
        entries.append(entry)
    if problems:
        raise UsageError(f"keys file {path}: {'; '.join(problems)}")
    return tuple(entries)


def _entry(line: str) -> KeyEntry:
    """One line; raises ValueError. No value is repeated: it might be a secret put there plain."""
    name, *words = line.split()
    if name_problem(name):
        raise ValueError(
            "it must begin with the key's name: 1 to 64 letters, digits or any of '._@-'"
        )
    values: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in (*_NEEDED, *LIMITS):
            raise ValueError(f"a word must be one of {', '.join((*_NEEDED, *LIMITS))}, and =VALUE")
        if key in values:
            raise ValueError(f"{key} is there twice")
        values[key] = value
    if missing := [key for key in _NEEDED if key not in values]:
        raise ValueError(f"{', '.join(missing)} is missing")
    if not _DIGEST.fullmatch(values["sha256"]):
        raise ValueError("sha256 must be 64 hexadecimal digits in lower case")
    if values["role"] not in list(KeyRole):
        raise ValueError(f"role must be {' or '.join(KeyRole)}")
    if name_problem(values["tenant"]):
        raise ValueError("tenant must be 1 to 64 letters, digits or any of '._@-'")
    for key in LIMITS:
        if key in values and not _NUMBER.fullmatch(values[key]):
            raise ValueError(f"{key} must be a whole number from 1 on")
    limits = KeyLimits(
        **{field: int(values[key]) for key, field in LIMITS.items() if key in values}
    )
    return KeyEntry(
        Principal(name, KeyRole(values["role"]), values["tenant"], limits), values["sha256"]
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One change at a time: the folder is locked, as the file itself is replaced."""
    try:
        folder = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"keys file {path}: its folder: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(path: Path, lines: list[str]) -> None:
    """Replace the file at once, for its owner only: no reader sees a part of it."""
    target = path.resolve()  # a link stays one
    try:
        # Made with mode 0600.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        try:
            with open(descriptor, "w") as file:
                file.writelines(f"{line}\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise UsageError(f"keys file {path}: it cannot be written: {error.strerror}") from error
