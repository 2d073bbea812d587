"""A fork server whose pipe takes what is no event, and then one."""

from __future__ import annotations

import sys

sys.stdout.buffer.write(b"hello\n\xff\n" + b"[" * 200_000 + b"\n")
sys.stdout.buffer.write(b'{"type":"imported","seconds":0.5}\n')
sys.stdout.flush()
sys.stdin.read()
