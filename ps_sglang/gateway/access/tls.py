"""The certificate by which clients know the server; a new one is taken while it runs."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from ps_sglang.errors import UsageError
from ps_sglang.gateway.access.file_watch import FileWatch

log = logging.getLogger("ps_sglang.gateway")


class Certificate:
    """A certificate (with those of its issuers behind it) and its key, from PEM files.

    Raises UsageError if they are wrong at first; later the ones from before stay in use.
    """

    def __init__(self, cert: Path, key: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._cert, self._key = cert, key
        self._watch = FileWatch((cert, key), clock)
        self._context = load(cert, key)

    def context(self) -> ssl.SSLContext:
        """What a new connection is to use."""
        if self._watch.has_changed():
            try:
                # A new one: a file that is wrong must leave nothing behind in the old one.
                self._context = load(self._cert, self._key)
            except UsageError as error:
                log.error("the certificate from before stays in use: %s", error)
            else:
                log.info("read the certificate %s", self._cert)
        return self._context


def load(cert: Path, key: Path) -> ssl.SSLContext:
    """The context of a server with that certificate; raises UsageError."""
    for flag, path in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise UsageError(f"{flag} {path}: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])

    def password() -> str:
        raise UsageError(f"--tls-key {key}: it is encrypted; give one without a passphrase")

    try:
        context.load_cert_chain(cert, key, password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(f"--tls-key {key}: it is not the key of --tls-cert {cert}") from error
        raise UsageError(
            f"--tls-cert {cert} and --tls-key {key}: they must be a certificate and its key in "
            f"PEM format ({error.reason or error})"
        ) from error
    return context
