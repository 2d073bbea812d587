"""`ps-sglang keys`."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ps_sglang.cli import main
from ps_sglang.gateway.access import key_file
from ps_sglang.gateway.access.api_keys import ApiKeys
from ps_sglang.gateway.access.limits import KeyLimits
from ps_sglang.gateway.access.principal import KeyRole, Principal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.txt"


def test_a_key_is_shown_once_and_is_good(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--role", "admin", "--tenant", "team-a", "--requests-at-once", "8"]
    words += ["--requests-per-minute", "600", "--queued-tokens", "100000"]
    assert main(["keys", "add", str(path), "alice", *words]) == 0
    printed = capsys.readouterr()
    secret = printed.out.strip()
    assert printed.out == secret + "\n", "nothing else: it can be piped"
    assert secret not in printed.err + path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    limits = KeyLimits(8, 600, 100_000)
    assert ApiKeys(path).find(secret) == Principal("alice", KeyRole.ADMIN, "team-a", limits)
    assert main(["keys", "add", str(path), "bob"]) == 0
    found = ApiKeys(path).find(capsys.readouterr().out.strip())
    assert found == Principal("bob", KeyRole.USER, "bob", KeyLimits())


def test_keys_are_listed_and_revoked(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["keys", "add", str(path), "alice", "--queued-tokens", "5"])
    main(["keys", "add", str(path), "ops", "--role", "admin"])
    secrets = capsys.readouterr().out.split()
    assert main(["keys", "list", str(path)]) == 0
    listed = capsys.readouterr().out
    assert [line.split() for line in listed.splitlines()] == [
        ["NAME", "ROLE", "TENANT", "LIMITS"],
        ["alice", "user", "alice", "queued-tokens=5"],
        ["ops", "admin", "ops", "-"],
    ]
    assert not any(secret in listed for secret in secrets)
    assert main(["keys", "revoke", str(path), "alice"]) == 0
    assert ApiKeys(path).find(secrets[0]) is None
    assert ApiKeys(path).find(secrets[1]) is not None


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["add", "FILE", "alice"], "has a key 'alice' already"),
        (["add", "FILE", "a b"], "the names of a key and of its tenant must have 1 to 64"),
        (["add", "FILE", "bob", "--tenant", "x/y"], "must have 1 to 64"),
        (["add", "FILE", "bob\nroot"], "must have 1 to 64"),
        (["add", "FILE", "bob", "--queued-tokens", "0"], "--queued-tokens is 0, must be at least"),
        (["revoke", "FILE", "bob"], "has no key 'bob'; it has alice"),
        (["list", "/nowhere/keys.txt"], "No such file"),
    ],
)
def test_what_is_wrong_is_told_and_changes_nothing(
    path: Path, capsys: pytest.CaptureFixture[str], words: list[str], problem: str
) -> None:
    main(["keys", "add", str(path), "alice"])
    before = path.read_text()
    assert main(["keys", *(str(path) if word == "FILE" else word for word in words)]) == 2
    assert problem in capsys.readouterr().err
    assert path.read_text() == before
    assert [one.principal.name for one in key_file.read(path)] == ["alice"]
