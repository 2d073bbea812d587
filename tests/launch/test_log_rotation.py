"""Log files stay short, and nothing of them is lost."""

from __future__ import annotations

from pathlib import Path

from ps_sglang.launch.log_rotation import KEPT, LogRotation


def ignore(line: str) -> None:
    raise AssertionError(line)


def test_a_long_log_is_rotated_and_written_on(tmp_path: Path) -> None:
    log = tmp_path / "w.log"
    rotation = LogRotation([log], most_bytes=5)
    with log.open("ab", buffering=0) as writer:  # as its process holds it
        for number in range(KEPT + 2):
            writer.write(b"line %d\n" % number)
            rotation.rotate(ignore)
        writer.write(b"end\n")
        rotation.rotate(ignore)
    assert log.read_bytes() == b"end\n"
    assert [(tmp_path / f"w.log.{number}").read_text() for number in range(1, KEPT + 1)] == [
        f"line {KEPT + 1 - back}\n" for back in range(KEPT)
    ]
    assert len(list(tmp_path.iterdir())) == KEPT + 1


def test_a_short_log_and_none_are_left(tmp_path: Path) -> None:
    log = tmp_path / "w.log"
    log.write_text("12345")
    LogRotation([log, tmp_path / "none.log"], most_bytes=5).rotate(ignore)
    assert [path.name for path in tmp_path.iterdir()] == ["w.log"]


def test_what_cannot_be_rotated_is_said_once(tmp_path: Path) -> None:
    log = tmp_path / "w.log"
    log.write_text("123456")
    (tmp_path / "w.log.2").touch()
    (tmp_path / "w.log.3").mkdir()  # a file cannot take its place
    lines: list[str] = []
    rotation = LogRotation([log], most_bytes=5)
    for _ in range(2):
        rotation.rotate(lines.append)
    (line,) = lines
    assert line.startswith(f"cannot rotate {log}, it grows on: ")
    assert log.read_text() == "123456"


def test_an_earlier_clusters_are_removed(tmp_path: Path) -> None:
    for name in ("w.log", "w.log.1", "w.log.3", "other.log"):
        (tmp_path / name).touch()
    LogRotation([tmp_path / "w.log"]).remove()
    assert [path.name for path in tmp_path.iterdir()] == ["other.log"]
