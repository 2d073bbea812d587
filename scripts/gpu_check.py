"""Does the GPU data plane of backend `zmq` work on this machine's card?

    python scripts/gpu_check.py

It needs one CUDA GPU, torch, triton, cuda-bindings, numpy, msgspec and xxhash, but no SGLang, and
fetches nothing. It prints a row for each check and saves them in `out/gpu_check.json`. The exit
status is 1 if a check fails, and 2 if there is no GPU to check. Two processes share the card, one
as a prefill worker and one as a decode worker. Engines are not started: `ps-sglang verify` compares
those.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

BUFFERS, PAGES, ELEMENTS = 32, 256, 64 * 512  # K and V of 16 layers, pages of 64 tokens
MOVED: Final = 128
DTYPES: Final = ("float32", "bfloat16")
SLEEP_CYCLES: Final = 200_000_000  # about 0.1 s of a stream


def main() -> int:
    """Check, print, save."""
    if (missing := _missing()) is not None:
        print(f"gpu_check: error: {missing}", file=sys.stderr)
        return 2
    import torch

    rows: list[dict[str, Any]] = []
    for dtype in DTYPES:
        with _prefill_worker(dtype) as ask:
            for name, check in (
                ("CUDA IPC, exact", _by_ipc), ("pinned memory and frames, exact", _by_frames),
                ("speed", _speed),
            ):  # fmt: skip
                rows.append(_row(f"{name} ({dtype})", partial(check, dtype, ask)))
    rows += [_row("waits for the engine's stream", _race), _row("overlap", _overlap)]
    result = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}
    path = REPOSITORY / "out" / "gpu_check.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"saved {path}")
    return 0 if all(row["ok"] for row in rows) else 1


def _missing() -> str | None:
    try:
        for name in ("cuda.bindings.driver", "msgspec", "triton", "xxhash"):
            import_module(name)
        import torch
    except ImportError as error:
        return f"{error}: install torch, triton, cuda-bindings, msgspec and xxhash"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "no CUDA GPU is here, so there is nothing to check; run it on a machine with one"
    return None


def _row(name: str, check: Callable[[], tuple[bool, str]]) -> dict[str, Any]:
    ok, detail = check()
    print(f"{'ok  ' if ok else 'FAIL'}  {name}: {detail}", flush=True)
    return {"check": name, "ok": ok, "detail": detail}


def _pool(dtype: str, seed: int) -> Any:
    """Buffers of random numbers, `[BUFFERS, PAGES, ELEMENTS]`, the same for a seed anywhere."""
    import torch

    numbers = torch.Generator(device="cuda").manual_seed(seed)
    shape = (BUFFERS, PAGES, ELEMENTS)
    return torch.randn(shape, generator=numbers, device="cuda").to(getattr(torch, dtype))


def _memory(pool: Any) -> Any:
    from ps_sglang.engine.transfer.cuda_memory import CudaMemory

    page = ELEMENTS * pool.element_size()
    return CudaMemory(
        [buffer.data_ptr() for buffer in pool], [PAGES * page] * BUFFERS, [page] * BUFFERS,
        gpu=0, wake=lambda: None,
    )  # fmt: skip


def _pages(seed: int) -> Any:
    import numpy as np

    return np.random.default_rng(seed).permutation(PAGES)[:MOVED].astype(np.int32)


def _value(ticket: Any) -> Any:
    ticket.wait()
    return ticket.value


@contextmanager
def _prefill_worker(dtype: str) -> Iterator[Callable[[str], Any]]:
    """A process with a pool (seed 1), which answers questions about it."""
    here, there = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_serve, args=(there, dtype), daemon=True)
    process.start()
    there.close()

    def ask(question: str) -> Any:
        here.send(question)
        return here.recv()

    try:
        yield ask
    finally:
        here.close()
        process.join(timeout=30)
        process.kill()


def _serve(pipe: Any, dtype: str) -> None:
    pool = _pool(dtype, 1)
    memory = _memory(pool)
    answers: dict[str, Callable[[], Any]] = {
        "describe": lambda: bytes(memory.describe()),
        "digest": lambda: _value(memory.digest(_pages(3))),
        "gather": lambda: bytes(_value(memory.gather(_pages(3)))),
    }
    while True:
        try:
            pipe.send(answers[pipe.recv()]())
        except EOFError:
            return


def _arrived(dtype: str, target: Any, digest: bytes, expected: bytes) -> tuple[bool, str]:
    source, before = _pool(dtype, 1), _pool(dtype, 2)
    before[:, _pages(4)] = source[:, _pages(3)]
    same = bool((target.view(before.dtype) == before).all())
    detail = f"{'every' if same else 'NOT every'} byte of the pool is right, the digests "
    return same and digest == expected, detail + ("agree" if digest == expected else "DIFFER")


def _by_ipc(dtype: str, ask: Callable[[str], Any]) -> tuple[bool, str]:
    import msgspec

    target = _pool(dtype, 2)
    memory = _memory(target)
    source = memory.open(msgspec.Raw(ask("describe")))
    digest = _value(memory.copy(source, _pages(3), _pages(4)))
    return _arrived(dtype, target, digest, ask("digest"))


def _by_frames(dtype: str, ask: Callable[[str], Any]) -> tuple[bool, str]:
    target = _pool(dtype, 2)
    digest = _value(_memory(target).scatter(_pages(4), ask("gather")))
    return _arrived(dtype, target, digest, ask("digest"))


def _speed(dtype: str, ask: Callable[[str], Any]) -> tuple[bool, str]:
    """Times of a handoff by IPC and of one device copy of as many bytes. Not judged."""
    import msgspec
    import torch

    target = _pool(dtype, 2)
    memory = _memory(target)
    source = memory.open(msgspec.Raw(ask("describe")))
    plain = torch.empty_like(target[:, :MOVED])
    whole = plain.clone()
    ours = _best(lambda: _value(memory.copy(source, _pages(3), _pages(4))))
    copied = _best(lambda: plain.copy_(whole))
    size = plain.numel() * plain.element_size() / 1e9
    ratio = ours / copied
    return True, f"{size / ours:.0f} GB/s, {ratio:.1f}x the time of a copy of {size:.2f} GB"


def _best(work: Callable[[], object]) -> float:
    import torch

    seconds = []
    for _ in range(12):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds[2:])


def _race() -> tuple[bool, str]:
    """A step that the engine launched writes late; a digest must see it, if streams are followed.

    Without that it must not, or the check could not tell.
    """
    import torch

    seen = {}
    for follows in (False, True):
        pool = _pool("float32", 1)
        memory, forward = _memory(pool), torch.cuda.Stream()
        if follows:
            memory.follow(forward)
        torch.cuda.synchronize()
        _value(memory.digest(_pages(3)))  # compiles the kernel
        with torch.cuda.stream(forward):
            torch.cuda._sleep(SLEEP_CYCLES)
            pool.fill_(1.0)
        early = _value(memory.digest(_pages(3)))
        torch.cuda.synchronize()
        seen[follows] = early == _value(memory.digest(_pages(3)))
    detail = f"followed: {seen[True]}, control that does not follow it: {seen[False]}"
    return seen[True] and not seen[False], f"late writes are seen if the stream is {detail}"


def _overlap() -> tuple[bool, str]:
    """Whether the host goes on while a digest waits for a step."""
    import torch

    memory, forward = _memory(_pool("float32", 1)), torch.cuda.Stream()
    memory.follow(forward)
    _value(memory.digest(_pages(3)))
    torch.cuda.synchronize()
    with torch.cuda.stream(forward):
        torch.cuda._sleep(SLEEP_CYCLES)
    began = time.perf_counter()
    ticket = memory.digest(_pages(3))
    asked = time.perf_counter() - began
    late = not ticket.done()
    ticket.wait()
    whole = time.perf_counter() - began
    detail = f"asked in {1e3 * asked:.2f} ms, done after {1e3 * whole:.1f} ms"
    return late and asked < whole / 2, detail


if __name__ == "__main__":
    sys.exit(main())
