"""Starts a child and says so; with the argument `stubborn` both ignore what should end them.

`plain`: SIGTERM ends it, and its child dies with it, as SGLang's sub-processes do.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys

from ps_sglang.launch.forked_process import die_with_parent

if sys.argv[1] == "ends":
    sys.exit(3)
with open(f"/dev/shm/ps_sglang_test_{os.getpid()}", "w+b") as file:
    file.truncate(mmap.PAGESIZE)
    memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
if (another := os.environ.get("MAPS")) is not None:
    with open(another, "r+b") as file:
        foreign = mmap.mmap(file.fileno(), mmap.PAGESIZE)
stubborn = sys.argv[1] == "stubborn"
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
parent = os.getpid()
if os.fork() == 0 and not stubborn:
    die_with_parent(parent)
os.write(1, f"up {os.environ['OWN']}\n".encode())  # in one piece, as there are two writers
while True:
    signal.pause()
