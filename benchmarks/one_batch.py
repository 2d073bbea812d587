"""A model in a process of its own, without a server: what a forward of one batch takes.

SGLang's `sglang.benchmark.one_batch` loads the model and runs the batches, with the plugin's hooks.
A process does what it is told and sleeps in between, so that measurements of several can alternate.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from ps_sglang.engine.request_state import begin_handoff
from ps_sglang.errors import LaunchError

_FLAGS: Final = (
    "--device cpu --dtype float32 --attention-backend torch_native --sampling-backend pytorch "
    "--disable-overlap-schedule --log-level warning --random-seed 0"
)


@dataclass(frozen=True)
class Forward:
    """`requests` prompts of `tokens` tokens each; request i has adapter i modulo `adapters`."""

    requests: int
    tokens: int
    adapters: int = 0


@dataclass(frozen=True)
class AdapterCosts:
    """Seconds to read each adapter and to fill a slot with it; bytes that one of either takes."""

    load_s: list[float]
    fill_s: list[float]
    loaded_bytes: float
    slot_bytes: float


class OneBatch:
    """The process's end of the conversation."""

    def __init__(self, pipe: Connection, ready_s: float) -> None:
        self._pipe = pipe
        self.ready_s = ready_s

    def load(self, adapters: Sequence[tuple[str, Path]]) -> AdapterCosts:
        """Load adapters; they are numbered in this order."""
        costs: AdapterCosts = self._ask("load", adapters)
        return costs

    def decode(self, forward: Forward, steps: int) -> list[float]:
        """Seconds of each of `steps` decode steps after a prefill that is not counted."""
        seconds: list[float] = self._ask("decode", forward, steps)
        return seconds

    def prefill(self, forward: Forward) -> float:
        """Seconds of a prefill."""
        seconds: float = self._ask("prefill", forward)
        return seconds

    def _ask(self, name: str, *arguments: Any) -> Any:
        self._pipe.send((name, arguments))
        try:
            return self._pipe.recv()
        except EOFError as error:
            raise LaunchError("the process with the model has ended; see above") from error


@contextmanager
def one_batch(
    model: Path, flags: Sequence[str], kv_tokens: int, threads: int
) -> Iterator[OneBatch]:
    """Load `model` with SGLang's `flags` on top of those that a CPU needs."""
    environ = {
        "PS_SGLANG_ENABLE": "1",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
        "TQDM_DISABLE": "1",
    }
    before = {name: os.environ.get(name) for name in environ}
    os.environ |= environ
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    everything = [*_FLAGS.split(), "--max-total-tokens", str(kv_tokens), *flags]
    process = context.Process(target=_serve, args=(theirs, str(model), everything), daemon=True)
    began = time.monotonic()
    try:
        process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    theirs.close()
    try:
        try:
            pipe.recv()
        except EOFError as error:
            raise LaunchError(f"no model with {' '.join(flags)}; see above") from error
        yield OneBatch(pipe, time.monotonic() - began)
    finally:
        pipe.close()
        process.join()


def _serve(pipe: Connection, model: str, flags: Sequence[str]) -> None:
    runner = _Runner(model, flags)
    pipe.send(None)
    while True:
        try:
            name, arguments = pipe.recv()
        except EOFError:  # the other end has all it wanted
            return
        pipe.send(getattr(runner, name)(*arguments))


class _Runner:
    def __init__(self, model: str, flags: Sequence[str]) -> None:
        from sglang.srt.plugins import load_plugins

        load_plugins()
        from sglang.benchmark import one_batch as stock
        from sglang.srt.server_args import PortArgs, prepare_server_args

        args = prepare_server_args(["--model-path", model, *flags])
        args.resolve_once()
        stock._set_envs_and_config(args)
        ranks = stock.SpawnRanks(
            world_rank=stock.spawn_world_rank(args, tp_rank=0, pp_rank=0), gpu_id=0
        )
        stock.publish(args, role="scheduler", ranks=ranks)
        stock._init_process_global_configs()
        self._stock = stock
        self._bench, _ = stock.load_model(args, PortArgs.init_new(args), 0, 0)
        logging.disable(logging.WARNING)  # one adapter under several names
        self._ids: list[str] = []

    def load(self, adapters: Sequence[tuple[str, Path]]) -> AdapterCosts:
        from sglang.srt.lora.lora_registry import LoRARef

        manager = self._bench.torch_runner.lora_manager
        load_s, fill_s = [], []
        for name, folder in adapters:
            ref = LoRARef(lora_name=name, lora_path=str(folder), pinned=False)
            result, seconds = _timed(partial(manager.load_lora_adapter, ref))
            if not result.success:
                raise LaunchError(result.error_message)
            self._ids.append(ref.lora_id)
            load_s.append(seconds)
        for one in self._ids:
            fill_s.append(_timed(partial(manager.fetch_new_loras, {one}))[1])
        layers = [layer for adapter in manager.loras.values() for layer in adapter.layers]
        loaded = [weight for layer in layers for weight in layer.weights.values()]
        pool = manager.memory_pool
        slots = [one for buffers in (pool.A_buffer, pool.B_buffer) for one in buffers.values()]
        return AdapterCosts(
            load_s,
            fill_s,
            sum(weight.nbytes for weight in loaded) / len(self._ids),
            sum(tensor[0].nbytes for tensors in slots for tensor in tensors),
        )

    def decode(self, forward: Forward, steps: int) -> list[float]:
        ids, _, batch = self._prefilled(forward)
        seconds = []
        for _ in range(steps):
            (ids, _), taken = _timed(partial(self._bench.decode, ids, batch))
            seconds.append(taken)
        return seconds

    def prefill(self, forward: Forward) -> float:
        return _timed(partial(self._prefilled, forward))[1]

    def _prefilled(self, forward: Forward) -> Any:
        self._bench.clear()
        words = min(40000, self._bench.torch_runner.model_config.vocab_size)
        prompts = [
            [(1000 + 37 * number + 11 * place) % words for place in range(forward.tokens)]
            for number in range(forward.requests)
        ]
        reqs = self._stock.prepare_synthetic_inputs_for_latency_test(
            forward.requests, forward.tokens, prompts
        )
        for number, req in enumerate(reqs):
            begin_handoff(req, forward.tokens)  # no scheduler has made it
            req.lora_id = self._ids[number % forward.adapters] if forward.adapters else None
        return self._bench.extend(reqs)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began
