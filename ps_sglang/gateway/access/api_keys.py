"""The keys that are good now: those of the file as it is, and the launcher's own."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ps_sglang.errors import UsageError
from ps_sglang.gateway.access import key_file
from ps_sglang.gateway.access.file_watch import FileWatch
from ps_sglang.gateway.access.key_file import KeyEntry
from ps_sglang.gateway.access.limits import UNLIMITED
from ps_sglang.gateway.access.principal import KeyRole, Principal

log = logging.getLogger("ps_sglang.gateway")

# No line of a file can have this name.
_LAUNCHER: Final = Principal("(launcher)", KeyRole.ADMIN, "(launcher)", UNLIMITED)


class ApiKeys:
    """The keys of a file, which is read again when it changes.

    `launcher` is the digest of the launcher's own key, an admin's. Raises UsageError if the file is
    wrong at first; later the keys from before stay good until it is right again.
    """

    def __init__(
        self,
        path: Path,
        launcher: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._own = () if launcher is None else (KeyEntry(_LAUNCHER, launcher),)
        self._watch = FileWatch((path,), clock)
        self._entries = self._read()

    def find(self, secret: str) -> Principal | None:
        """Whose key it is, if it is one.

        How long the look-up takes depends on the digest of what the client sent. It cannot choose
        that digest, so it learns nothing of the keys here; the comparison, which meets a key's own
        digest, takes the same time whatever it finds.
        """
        if self._watch.has_changed():
            self._reread()
        digest = key_file.digest_of(secret)
        entry = self._entries.get(digest)
        if entry is None or not hmac.compare_digest(entry.digest, digest):
            return None
        return entry.principal

    def _reread(self) -> None:
        try:
            self._entries = self._read()
        except UsageError as error:
            log.error("the keys from before stay good: %s", error)
        else:
            log.info("read %d keys from %s", len(self._entries) - len(self._own), self._path)

    def _read(self) -> dict[str, KeyEntry]:
        return {entry.digest: entry for entry in (*self._own, *key_file.read(self._path))}
