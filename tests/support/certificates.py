"""Certificates for tests, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


def write_certificate(
    folder: Path,
    name: str,
    passphrase: bytes | None = None,
    issuer: tuple[Path, Path] | None = None,
) -> tuple[Path, Path]:
    """A new certificate for 127.0.0.1 and its key, as `NAME.pem` and `NAME.key`.

    The `issuer` is another one; without it the certificate is its own.
    """
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    lock = ["-nodes"] if passphrase is None else ["-passout", f"pass:{passphrase.decode()}"]
    signed = [] if issuer is None else ["-CA", str(issuer[0]), "-CAkey", str(issuer[1])]
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert), *lock, *signed),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key
