"""A second host on this machine: a network namespace, on a cable that can be cut and narrowed."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from ps_sglang.errors import LaunchError

HERE: Final = "10.213.8.1"
THERE: Final = "10.213.8.2"
_BRIDGE: Final = "faults0"
_CABLE: Final = "faults1"
"""This machine's end of the cable, at the bridge; the other host's is _FAR_END."""
_FAR_END: Final = "eth0"
_HOST: Final = "ps-faults"
_AS_OTHER_HOST: Final = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'


def no_second_host() -> str | None:
    """Why this machine cannot play two hosts, if it cannot."""
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("tc")):
        return "a second host is a network namespace, which needs root and iproute2"
    try:
        with second_host():
            narrow(1_000_000)
    except LaunchError as error:
        return f"a second host is a network namespace, and {error}"
    return None


@contextmanager
def second_host() -> Iterator[None]:
    """A host at THERE, on a cable to this machine, which is at HERE. Raises LaunchError."""
    with ExitStack() as made:
        _run("ip", "link", "add", _BRIDGE, "type", "bridge")
        made.callback(_run, "ip", "link", "delete", _BRIDGE)
        _run("ip", "addr", "add", f"{HERE}/24", "dev", _BRIDGE)
        _run("ip", "link", "set", _BRIDGE, "up")
        _run("ip", "netns", "add", _HOST)
        made.callback(_run, "ip", "netns", "delete", _HOST)
        _run("ip", "link", "add", _CABLE, "type", "veth", "peer", "name", _FAR_END, "netns", _HOST)
        _run("ip", "link", "set", _CABLE, "master", _BRIDGE, "up")
        _run("ip", "-n", _HOST, "addr", "add", f"{THERE}/24", "dev", _FAR_END)
        _run("ip", "-n", _HOST, "link", "set", _FAR_END, "up")
        _run("ip", "-n", _HOST, "link", "set", "lo", "up")
        yield


def there(command: Sequence[str], folder: Path) -> list[str]:
    """The command that runs `command` on the second host, whose boot id is kept in `folder`.

    Workers that have not one boot id in common do not share memory.
    """
    boot_id = folder / "boot-id"
    if not boot_id.exists():
        boot_id.write_text(f"{uuid.uuid4()}\n")
    # A mount namespace of its own comes with the network's.
    return ["ip", "netns", "exec", _HOST, "sh", "-c", _AS_OTHER_HOST, str(boot_id), *command]


def cut() -> None:
    """Nothing gets through between the hosts."""
    _run("ip", "link", "set", _CABLE, "down")


def mend() -> None:
    """Take `cut` back."""
    _run("ip", "link", "set", _CABLE, "up")


def narrow(bytes_per_second: int) -> None:
    """No more than that gets through, each way, and what does not waits or is dropped."""
    rate = ("rate", f"{8 * bytes_per_second}bit", "burst", "128kb", "latency", "400ms")
    for end in _ENDS:
        _run("tc", *end[:-1], "qdisc", "add", "dev", end[-1], "root", "tbf", *rate)


def widen() -> None:
    """Take `narrow` back."""
    for end in _ENDS:
        _run("tc", *end[:-1], "qdisc", "del", "dev", end[-1], "root")


_ENDS: Final = ((_CABLE,), ("-n", _HOST, _FAR_END))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LaunchError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
