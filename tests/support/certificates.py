"""Certificates for tests, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


def write_certificate(
    folder: Path, name: str, passphrase: bytes | None = None
) -> tuple[Path, Path]:
    """A new self-signed certificate for 127.0.0.1 and its key, as `NAME.pem` and `NAME.key`."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    lock = ["-nodes"] if passphrase is None else ["-passout", f"pass:{passphrase.decode()}"]
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert), *lock),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key
