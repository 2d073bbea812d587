"""The secret that the gateway and the workers of one cluster share.

It never travels. A worker shows that it has it: asked with a random text (CHALLENGE_HEADER), it
answers with a digest of the secret, that text and its incarnation (PROOF_HEADER). The incarnation
is part of it, as a forger could pass the question on to a worker that has the secret. The gateway
asks on each new connection, before it sends a prompt there. Its requests carry a token for one
incarnation, which no other process takes: whoever has lured one out of it has nothing.

Between workers a request carries a digest of itself (REQUEST_PROOF_HEADER): who overhears one can
do no more than repeat it. ZMQ sockets have keys that are made from the secret, see `wires`.

All find the secret in a file, which VARIABLE names.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from ps_sglang.errors import UsageError

VARIABLE: Final = "PS_SGLANG_CLUSTER_KEY_FILE"
CHALLENGE_HEADER: Final = "x-ps-sglang-challenge"
PROOF_HEADER: Final = "x-ps-sglang-proof"
REQUEST_PROOF_HEADER: Final = "x-ps-sglang-request-proof"
PROOF_PATH: Final = "/ps_sglang/proof"
"""A worker's route that does nothing but answer a challenge."""
LONGEST_CHALLENGE: Final = 128
"""In characters; a longer one gets no proof."""

_SHORTEST: Final = 32
_BYTES: Final = 32
_READABLE_BY_ALL: Final = 0o007


class ClusterKey:
    """One cluster's secret. Its text is printable ASCII of at least 32 characters.

    Raises UsageError for another text, which it does not repeat.
    """

    def __init__(self, text: str) -> None:
        usable = text.isascii() and text.isprintable() and " " not in text
        if not usable or len(text) < _SHORTEST:
            raise UsageError(
                f"a cluster key has at least {_SHORTEST} printable ASCII characters and no spaces, "
                f"this one has {len(text)} characters"
            )
        self._text = text
        self._secret = text.encode()

    def __repr__(self) -> str:
        return f"<cluster key {self.id}>"

    @classmethod
    def make(cls) -> Self:
        """A new random one."""
        return cls(secrets.token_urlsafe(_BYTES))

    @classmethod
    def load(cls, path: Path) -> Self:
        """The one in a file, which others may not read.

        Raises UsageError, which names the file.
        """
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                text = file.read().decode("latin-1").strip()
        except OSError as error:
            raise UsageError(f"cluster key file {path}: {error.strerror}") from error
        if mode & _READABLE_BY_ALL:
            raise UsageError(
                f"cluster key file {path}: every user of this machine may read it; chmod 600 it"
            )
        try:
            return cls(text)
        except UsageError as error:
            raise UsageError(f"cluster key file {path}: {error}") from error

    def save(self, path: Path) -> None:
        """Write it to a new file that nobody else may read."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(self._text + "\n")

    @property
    def id(self) -> str:
        """What tells it from another cluster's, and gives nothing of it away."""
        return self._digest("id", "")[:16]

    @property
    def authorization(self) -> str:
        """The Authorization header that opens every worker, for people and the launcher."""
        return f"Bearer {self._text}"

    def proof(self, challenge: str, incarnation: str) -> str:
        """What a worker's process answers to a challenge."""
        return self._digest("proof", f"{incarnation}\n{challenge}")

    def is_proof(self, proof: str | None, challenge: str, incarnation: str | None) -> bool:
        """Whether an answer shows that the process `incarnation` has the secret."""
        if proof is None or incarnation is None:
            return False
        return _equal(proof, self.proof(challenge, incarnation))

    def request_headers(self, incarnation: str) -> dict[str, str]:
        """What a request of the gateway's to that process carries."""
        return {"Authorization": f"Bearer {self._token(incarnation)}"}

    def opens(self, authorization: str, incarnation: str) -> bool:
        """Whether an Authorization header opens the process `incarnation`."""
        scheme, _, given = authorization.partition(" ")
        is_token = _equal(given, self._token(incarnation))
        return scheme.lower() == "bearer" and (_equal(given, self._text) or is_token)

    def request_proof(self, method: str, path: str, body: bytes) -> str:
        """What a request between workers carries; `path` has the query, as it is sent."""
        return self._mac("request", f"{method} {path}\n".encode() + body).hex()

    def is_request_proof(self, proof: str, method: str, path: str, body: bytes) -> bool:
        """Whether a request comes from somebody who has the secret, as it is."""
        return _equal(proof, self.request_proof(method, path, body))

    def derive(self, purpose: str) -> bytes:
        """32 secret bytes for one purpose, from which neither this secret nor others follow."""
        return self._mac(purpose, b"")

    def _token(self, incarnation: str) -> str:
        return self._digest("token", incarnation)

    def _digest(self, purpose: str, text: str) -> str:
        return self._mac(purpose, text.encode("latin-1", "replace")).hex()

    def _mac(self, purpose: str, message: bytes) -> bytes:
        labelled = f"ps_sglang {purpose}\n".encode() + message
        return hmac.digest(self._secret, labelled, hashlib.sha256)


def from_environment(environ: Mapping[str, str]) -> ClusterKey | None:
    """The secret of this process's cluster, None without one; raises UsageError."""
    path = environ.get(VARIABLE)
    return ClusterKey.load(Path(path)) if path else None


def new_challenge() -> str:
    """A text that no process has been asked with before."""
    return secrets.token_hex(16)


def _equal(left: str, right: str) -> bool:
    """In a time that does not tell how much of them is equal."""
    return hmac.compare_digest(left.encode("latin-1", "replace"), right.encode("latin-1"))
