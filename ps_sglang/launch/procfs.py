"""Facts about running processes, read from Linux's /proc."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psutil

_PROC: Final = Path("/proc")
SHARED_MEMORY: Final = "/dev/shm/"


def descendants(ancestor: int) -> list[int]:
    """Every process below `ancestor`, unreaped ones too."""
    children: dict[int, list[int]] = {}
    for pid, fields in _stat_of_all():
        children.setdefault(int(fields[1]), []).append(pid)
    descendants: list[int] = []
    waiting = [ancestor]
    while waiting:
        below = children.get(waiting.pop(), [])
        descendants += below
        waiting += below
    return descendants


def session_members(leader: int) -> list[int]:
    """The living processes of the session that `leader` leads or led."""
    return [pid for pid, fields in _stat_of_all() if int(fields[3]) == leader and fields[0] != "Z"]


def shared_memory_files(pid: int) -> set[Path]:
    """POSIX shared memory that a process has mapped and nobody has unlinked."""
    try:
        lines = (_PROC / str(pid) / "maps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return set()
    paths = [line[line.index(SHARED_MEMORY) :] for line in lines if SHARED_MEMORY in line]
    return {Path(path) for path in paths if not path.endswith(" (deleted)")}


def proportional_bytes(pid: int) -> int:
    """Memory of one process, pages shared with others divided among them (PSS); 0 if gone."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def listens(leader: int, port: int) -> bool:
    """Whether a process of the session that `leader` leads has a TCP listener on `port`."""
    for pid in session_members(leader):
        try:
            connections = psutil.Process(pid).net_connections("tcp")
        except psutil.Error:  # gone meanwhile
            continue
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
            return True
    return False


def _stat_of_all() -> list[tuple[int, list[str]]]:
    """(pid, fields after the command name) of all processes: state, parent, group, session."""
    processes = []
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            text = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        processes.append((int(entry.name), text.rpartition(")")[2].split()))
    return processes
