"""Programs that mean harm: each fails, within its limits, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from ps_sglang.training.tasks.sandbox import Program, SandboxLimits, run_all

GOOD = "def f(x):\n    return x + 1"
LIMITS = SandboxLimits(cpu_seconds=1, wall_seconds=100)

ATTACKS = {
    "endless loop": "def f(x):\n    while True: pass",
    "endless loop on import": "while True: pass",
    "memory bomb": "def f(x):\n    return len([0] * (1 << 40))",
    "slow memory bomb": "def f(x):\n    a = []\n    while True: a.append(bytearray(1 << 24))",
    "endless recursion": "def f(x):\n    return f(x)",
    "os._exit": "import os\nos._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "fork bomb": "import os\nwhile True: os.fork()",
    "fork by an inner module": (
        "def f(x):\n"
        "    from _posixsubprocess import fork_exec\n"
        "    fork_exec([b'/bin/true'], [b'/bin/true'], True, (), None, None, *[-1] * 6, 3, 4,"
        " True, False, 0, None, None, None, -1, None, False)\n"
        "    return 2"
    ),
    "thread": (
        "import threading\ndef f(x):\n    threading.Thread(target=print).start()\n    return 2"
    ),
    "stdout flood": "while True: print('2' * 100_000)",
    "flood of every descriptor": (
        "import os\n"
        "while True:\n"
        "    for fd in range(32):\n"
        "        try: os.write(fd, b'2' * 100_000)\n"
        "        except OSError: pass\n"
    ),
    "prints the result": "print('{\"values\": [2]}')",
    "huge result": "def f(x):\n    return [0] * 10_000_000",
    "deep result": ("def f(x):\n    a = []\n    for _ in range(100_000): a = [a]\n    return a"),
    "class that equals everything": (
        "class A(int):\n    def __eq__(self, other): return True\ndef f(x):\n    return A(7)"
    ),
    "not a value": "def f(x):\n    return {1, 2}",
    "null byte": "\0",
    "no function": "g = 1",
    "signal to the parent": "import os\ndef f(x):\n    os.kill(os.getppid(), 15)\n    return 2",
    "signal to everyone": "import os\ndef f(x):\n    os.kill(-1, 9)\n    return 2",
    "shell": "import os\ndef f(x):\n    os.system('true')\n    return 2",
    "subprocess": "import subprocess\ndef f(x):\n    subprocess.run(['true'])\n    return 2",
    "socket": "import socket\ndef f(x):\n    socket.socket()\n    return 2",
    "reads a file": "def f(x):\n    open('/etc/passwd')\n    return 2",
    "removes a folder": "import os\ndef f(x):\n    os.rmdir('{folder}')\n    return 2",
    "writes a file": "def f(x):\n    open('{folder}/new', 'w')\n    return 2",
    "ctypes": "import ctypes\ndef f(x):\n    ctypes.CDLL(None)\n    return 2",
    "frames": "import sys\ndef f(x):\n    sys._getframe(1)\n    return 2",
    "reads standard input": "def f(x):\n    input()\n    return 2",
}


def children() -> set[psutil.Process]:
    """What this process has started; other tests may have left some that end with it."""
    return set(psutil.Process().children(recursive=True))


def call(source: str) -> Program:
    return Program(source, (("f", [1]),))


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_fails_and_harms_nothing(attack: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    source = ATTACKS[attack].replace("{folder}", str(tmp_path))
    before = children()
    assert run_all([call(source), call(GOOD)], LIMITS) == [None, [2]]
    assert list(tmp_path.iterdir()) == []
    assert children() <= before


def test_a_program_that_only_waits_is_stopped() -> None:
    waits = "import time\ndef f(x):\n    time.sleep(1000)\n    return 2"
    before = children()
    assert run_all([call(waits)], SandboxLimits(wall_seconds=0.5)) == [None]
    assert children() <= before


def test_what_programs_need_of_the_standard_library_works() -> None:
    source = """
from __future__ import annotations
import calendar, dataclasses, datetime, decimal, enum, hashlib, json, math, random, re, sys
from collections import Counter, namedtuple
from typing import Generic, NamedTuple, TypeVar
T = TypeVar("T")
Point = namedtuple("Point", "x y")
class Colour(enum.Enum):
    RED = 1
@dataclasses.dataclass
class Box(Generic[T]):
    content: T
def f(x):
    random.seed(0)
    print("printed")
    sys.stderr.write("too")
    assert random.random() < 1 and re.sub("a", "b", "a") == "b" and Counter("aa")["a"] == 2
    return [Point(x, 2).x, Box(3).content, Colour.RED.value, hashlib.md5(b"").hexdigest()[:4]]
"""
    assert run_all([call(source)]) == [[[1, 3, 1, "d41d"]]]


def test_calls_share_the_program_but_not_their_arguments() -> None:
    source = "seen = []\ndef f(xs):\n    xs.append(0)\n    seen.append(len(xs))\n    return seen"
    xs = [1, 2]
    values = run_all([Program(source, (("f", [xs]), ("f", [xs])))])
    assert values == [[[3], [3, 3]]]
    assert xs == [1, 2]


@pytest.mark.parametrize("value", ["True", "None", "1.5", "'x'", "[[1], 'a']", "10 ** 50"])
def test_values_come_back_as_they_are(value: str) -> None:
    assert run_all([call(f"def f(x):\n    return {value}")]) == [[eval(value)]]


def test_as_many_as_given_in_their_order() -> None:
    programs = [call(f"def f(x):\n    return {number}") for number in range(20)]
    assert run_all(programs) == [[number] for number in range(20)]
