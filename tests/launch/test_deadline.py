"""When the launcher gives up on workers."""

from __future__ import annotations

from pathlib import Path

from ps_sglang.launch.deadline import Deadline


def test_without_logs_the_time_counts_from_the_start() -> None:
    deadline = Deadline(10, began=100, logs={})
    assert deadline.missed(["a", "b"], 110) is None
    assert deadline.missed(["a", "b"], 110.1) == "a was not ready within 10 s"


def test_a_log_that_grows_is_progress(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    deadline = Deadline(10, began=0, logs={"a": log, "b": tmp_path / "b.log"})
    assert deadline.missed(["a"], 50) is None  # it has only begun to wait for it
    log.write_text("loading")
    assert deadline.missed(["a"], 60) is None
    assert deadline.missed(["a"], 70) is None
    late = deadline.missed(["a"], 70.1)
    assert late is not None
    assert late.startswith("a is not ready, and has written nothing for 10 s")


def test_the_log_of_one_that_is_ready_is_no_progress(tmp_path: Path) -> None:
    logs = {name: tmp_path / f"{name}.log" for name in ("a", "b")}
    deadline = Deadline(10, began=0, logs=logs)
    assert deadline.missed(["a", "b"], 0) is None
    logs["b"].write_text("answers")
    assert deadline.missed(["a"], 11) is not None
