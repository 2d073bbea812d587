"""Keys and certificates that change while the gateway runs, and how keys are compared."""

from __future__ import annotations

import hmac
import logging
import ssl
from pathlib import Path

import pytest

from ps_sglang.errors import UsageError
from ps_sglang.gateway.access import key_file, tls
from ps_sglang.gateway.access.api_keys import ApiKeys
from ps_sglang.gateway.access.tls import Certificate
from tests.gateway.hand_clock import Clock
from tests.gateway.keys_setup import add_key, secret
from tests.support.certificates import write_certificate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.txt"
    add_key(path, "alice")
    return path


def test_a_change_is_seen_within_a_second(path: Path, clock: Clock) -> None:
    keys = ApiKeys(path, clock=clock)
    assert keys.find(secret("eve")) is None
    add_key(path, "eve")
    assert keys.find(secret("eve")) is None, "the file is not looked at for each request"
    clock.now += 1
    found = keys.find(secret("eve"))
    assert found is not None
    assert found.tenant == "team-b"
    key_file.revoke(path, "alice")
    clock.now += 1
    assert keys.find(secret("alice")) is None
    key_file.revoke(path, "eve")
    clock.now += 1
    assert keys.find(secret("eve")) is None, "the last key can be revoked, too"


@pytest.mark.parametrize("change", ["broken", "gone"])
def test_a_file_that_is_wrong_leaves_the_keys_as_they_were(
    path: Path, clock: Clock, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ApiKeys(path, clock=clock)
    if change == "gone":
        path.unlink()
    else:
        path.write_text("alice\n")
    for _ in range(3):
        clock.now += 1
        assert keys.find(secret("alice")) is not None
    (line,) = (one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR)
    assert line.startswith("the keys from before stay good: keys file ")
    path.write_text("")
    add_key(path, "eve")
    clock.now += 1
    assert keys.find(secret("alice")) is None
    assert keys.find(secret("eve")) is not None


def test_a_file_that_is_wrong_at_first_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.txt"):
        ApiKeys(tmp_path / "none.txt")


def test_the_launchers_own_key_stays(path: Path, clock: Clock) -> None:
    keys = ApiKeys(path, key_file.digest_of("own"), clock)
    key_file.revoke(path, "alice")
    clock.now += 1
    found = keys.find("own")
    assert found is not None
    assert found.is_admin


def test_comparison_takes_the_same_time_whatever_it_finds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but digests is kept, looked up and compared, and the comparison is hmac's."""
    compared = []

    def compare(first: str, second: str) -> bool:
        compared.append((first, second))
        return False

    keys = ApiKeys(path)
    assert secret("alice") not in repr(vars(keys))
    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert keys.find(secret("alice")) is None, "the comparison decides"
    digest = key_file.digest_of(secret("alice"))
    assert compared == [(digest, digest)]


def test_a_new_certificate_is_taken(tmp_path: Path, clock: Clock) -> None:
    cert, key = write_certificate(tmp_path, "one")
    certificate = Certificate(cert, key, clock)
    first = certificate.context()
    assert certificate.context() is first
    new_cert, new_key = write_certificate(tmp_path, "two")
    cert.write_bytes(new_cert.read_bytes())
    clock.now += 1
    assert certificate.context() is first, "the certificate is there, its key is not"
    key.write_bytes(new_key.read_bytes())
    clock.now += 1
    assert certificate.context() is not first


def test_wrong_certificates_are_refused_with_the_reason(tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path, "one")
    _, other_key = write_certificate(tmp_path, "two")
    words = tmp_path / "words"
    words.write_text("no PEM")
    locked = tmp_path / "locked.key"
    write_certificate(tmp_path, "locked", passphrase=b"word")
    for pair, problem in (
        ((cert, other_key), rf"--tls-key {other_key}: it is not the key of --tls-cert {cert}"),
        ((words, key), "they must be a certificate and its key in PEM format"),
        ((cert, words), "they must be a certificate and its key in PEM format"),
        ((tmp_path / "none", key), r"--tls-cert \S+none: No such file"),
        ((cert, tmp_path / "none"), r"--tls-key \S+none: No such file"),
        ((tmp_path / "locked.pem", locked), "it is encrypted; give one without a passphrase"),
    ):
        with pytest.raises(UsageError, match=problem):
            tls.load(*pair)
    assert tls.load(cert, key).minimum_version >= ssl.TLSVersion.TLSv1_2
