"""The file of API keys: what it holds, what is refused, and how it is written."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from ps_sglang.errors import UsageError
from ps_sglang.gateway.access import key_file
from ps_sglang.gateway.access.key_file import KeyEntry, digest_of, new_secret
from ps_sglang.gateway.access.limits import UNLIMITED, KeyLimits
from ps_sglang.gateway.access.principal import KeyRole, Principal

A, B = "a" * 64, "b" * 64
GOOD = f"alice sha256={A} role=user tenant=team-a"


def entry(name: str, digest: str = A, limits: KeyLimits = UNLIMITED) -> KeyEntry:
    return KeyEntry(Principal(name, KeyRole.USER, "team-a", limits), digest)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    first = entry("alice", A, KeyLimits(8, 600, 100_000))
    second = KeyEntry(Principal("ops@team", KeyRole.ADMIN, "ops", KeyLimits(None, 5, None)), B)
    for one in (first, second):
        key_file.add(path, one)
    assert key_file.read(path) == (first, second)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["keys.txt"], "nothing is left behind"
    assert path.read_text().splitlines()[0] == (
        f"alice sha256={A} role=user tenant=team-a requests-at-once=8 requests-per-minute=600 "
        "queued-tokens=100000"
    )


def test_comments_and_what_is_beside_stay(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(f"# ours\n\n  {GOOD}\nbob sha256={B} tenant=x role=admin\n")
    key_file.revoke(path, "alice")
    assert path.read_text() == f"# ours\n\nbob sha256={B} tenant=x role=admin\n"
    key_file.add(path, entry("alice"))
    assert [one.principal.name for one in key_file.read(path)] == ["bob", "alice"]
    path.write_text("# nobody\n")
    assert key_file.read(path) == ()


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text(GOOD + "\n")
    link = tmp_path / "keys.txt"
    link.symlink_to("real.txt")
    key_file.add(link, entry("bob", B))
    assert link.is_symlink()
    assert len(key_file.read(tmp_path / "real.txt")) == 2


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("alice", "sha256, role, tenant is missing"),
        (GOOD.replace("tenant=team-a", ""), "tenant is missing"),
        (GOOD.replace(A, "a" * 63), "sha256 must be 64 hexadecimal digits"),
        (GOOD.replace(A, "A" * 64), "sha256 must be 64 hexadecimal digits"),
        (GOOD.replace("user", "root"), "role must be user or admin"),
        (GOOD.replace("team-a", "team/a"), "tenant must be 1 to 64 letters"),
        (GOOD.replace("team-a", ""), "tenant must be 1 to 64 letters"),
        (GOOD + " tenant=x", "tenant is there twice"),
        (GOOD + " colour=red", "a word must be one of sha256, role, tenant, requests-at-once"),
        (GOOD + " queued-tokens=0", "queued-tokens must be a whole number from 1 on"),
        (GOOD + " queued-tokens=many", "queued-tokens must be a whole number from 1 on"),
        ("role=user" + GOOD, "it must begin with the key's name"),
        ("x" * 65 + GOOD[5:], "it must begin with the key's name"),
        (GOOD.replace("alice", "bob"), "the name 'bob' is there already"),
        (GOOD.replace(A, B), "another line has the same sha256"),
    ],
)
def test_a_wrong_line_is_named_and_its_values_are_not_told(
    tmp_path: Path, line: str, problem: str
) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(f"bob sha256={B} role=user tenant=x\n{line}\nsha256=psk-plain\n")
    with pytest.raises(UsageError) as caught:
        key_file.read(path)
    message = str(caught.value)
    assert f"keys file {path}: line 2: " in message
    assert problem in message
    assert "line 3: " in message, "all wrong lines are told"
    assert A not in message
    assert "psk-plain" not in message


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        key_file.read(tmp_path / "none.txt")
    with pytest.raises(UsageError, match="its folder: No such file"):
        key_file.add(tmp_path / "none" / "keys.txt", entry("a"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="it is no text"):
        key_file.read(tmp_path / "binary")
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="has no key 'x'; it has none"):
        key_file.revoke(tmp_path / "empty", "x")


def test_a_wrong_file_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("alice\n")
    with pytest.raises(UsageError, match="line 1"):
        key_file.add(path, entry("bob"))
    with pytest.raises(UsageError, match="line 1"):
        key_file.revoke(path, "x")
    assert path.read_text() == "alice\n"


def test_changes_at_one_time_are_all_made(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    names = [f"k{number}" for number in range(16)]
    threads = [
        threading.Thread(target=key_file.add, args=(path, entry(name, digest_of(name))))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.principal.name for one in key_file.read(path)) == sorted(names)


def test_secrets_are_random_and_fit_a_header() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    assert first.isascii()
    # 32 bytes in base64, behind the prefix.
    assert len(first) == len("psk-") + 43
    assert digest_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
