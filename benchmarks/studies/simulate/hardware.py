"""How long a step takes: published figures of models and GPUs, or measurements.

The page beside this file has the source of each constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import msgspec

from benchmarks.studies.simulate.request import PAGE
from ps_sglang.errors import UsageError


@dataclass(frozen=True)
class Model:
    """A dense transformer with 16-bit weights and KV."""

    name: str
    parameters: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def weight_bytes(self) -> float:
        """Of all parameters."""
        return 2 * self.parameters

    @property
    def kv_bytes(self) -> int:
        """Of one token."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Device:
    """A GPU and its links; FLOPs, bytes and bytes a second.

    The last four are the parts of the peaks that programs were seen to reach.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    host_link: float
    flops_reached: float
    bandwidth_reached: float
    link_reached: float
    host_link_reached: float


MODELS: Final = {
    "llama-3.1-8b": Model("llama-3.1-8b", 8.03e9, 32, 32, 8, 128),
    "qwen3-14b": Model("qwen3-14b", 14.8e9, 40, 40, 8, 128),
}
DEVICES: Final = {
    "a100-80g": Device(
        "a100-80g", 312e12, 80e9, 2.039e12, 25e9, 32e9, 0.57, 0.685, 0.87, 0.85
    ),
    "h100": Device("h100", 989.5e12, 80e9, 3.35e12, 50e9, 64e9, 0.39, 0.685, 0.475, 0.85),
}  # fmt: skip
MEMORY_FRACTION: Final = 0.84
CHUNK: Final = 8192
HANDOFF_LATENCY: Final = 2e-3


class Steps(Protocol):
    """What the simulation asks; all in seconds."""

    @property
    def pool_tokens(self) -> int:
        """Tokens of KV that a worker has room for."""
        ...

    @property
    def chunk(self) -> int:
        """Tokens of a prefill batch at most."""
        ...

    @property
    def cores(self) -> float | None:
        """What all workers' steps share; None: each worker has its own device."""
        ...

    @property
    def prefill_cores(self) -> float:
        """How many of the cores a prefill uses at full speed."""
        ...

    @property
    def decode_cores(self) -> float:
        """How many a decode step uses."""
        ...

    @property
    def idle(self) -> float:
        """How much of one core each worker burns all the time."""
        ...

    @property
    def request(self) -> float:
        """What a request costs a core besides its steps."""
        ...

    def prefill(self, new: int, products: float) -> float:
        """A forward pass over `new` tokens with `products` pairs of query and key."""
        ...

    def decode(self, batch: int, context: float) -> float:
        """A decode step of `batch` requests that read `context` tokens of KV together.

        Linear in `context`.
        """
        ...

    def move(self, tokens: int) -> float:
        """Handing the pages of `tokens` tokens to a decode worker."""
        ...

    def load(self, tokens: int) -> float:
        """Bringing the pages of `tokens` tokens back from host memory."""
        ...


class Roofline:
    """Step times from what the hardware can do at most, and the part of it that is reached."""

    chunk = CHUNK
    cores = None
    prefill_cores = decode_cores = 1.0
    idle = 0.0
    request = 0.0

    def __init__(self, model: Model, device: Device) -> None:
        self._model, self._device = model, device
        self.pool_tokens = int(
            (MEMORY_FRACTION * device.memory - model.weight_bytes) / model.kv_bytes
        )
        self._flops = device.flops * device.flops_reached
        self._bandwidth = device.bandwidth * device.bandwidth_reached
        self._attention = 4.0 * model.layers * model.heads * model.head_dim

    def prefill(self, new: int, products: float) -> float:
        """The slower of computing and reading the weights."""
        flops = 2 * self._model.parameters * new + self._attention * products
        return max(flops / self._flops, self._model.weight_bytes / self._bandwidth)

    def decode(self, batch: int, context: float) -> float:
        """The weights, read or computed with, then the KV."""
        weights = max(
            self._model.weight_bytes / self._bandwidth,
            2 * self._model.parameters * batch / self._flops,
        )
        return weights + context * self._model.kv_bytes / self._bandwidth

    def move(self, tokens: int) -> float:
        """Latency and the link."""
        return HANDOFF_LATENCY + tokens * self._model.kv_bytes / (
            self._device.link * self._device.link_reached
        )

    def load(self, tokens: int) -> float:
        """PCIe."""
        device = self._device
        return tokens * self._model.kv_bytes / (device.host_link * device.host_link_reached)


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Step times from measurements of a real engine, seconds: each is linear in what it counts.

    `cores`: of the machine on which all workers run, without it each has a device of its own.
    `prefill_cores` and `decode_cores`: how many of them a step used when it ran alone; together
    they slow down when they want more than there are. `request`: seconds of one core that a request
    costs besides its steps (gateway, HTTP, tokens). `idle`: of one core, what each worker burns
    all the time. `page`: tokens of a page. `chunk`: of a prefill
    batch, at most.
    """

    pool_tokens: int
    prefill_step: float
    prefill_token: float
    decode_step: float
    decode_request: float
    move_fixed: float
    move_token: float
    prefill_product: float = 0.0
    decode_context_token: float = 0.0
    load_token: float = 0.0
    cores: float | None = None
    prefill_cores: float = 1.0
    decode_cores: float = 1.0
    request: float = 0.0
    idle: float = 0.0
    page: int = PAGE
    chunk: int = CHUNK

    def prefill(self, new: int, products: float) -> float:
        """A pass, its tokens, its attention."""
        return self.prefill_step + self.prefill_token * new + self.prefill_product * products

    def decode(self, batch: int, context: float) -> float:
        """A step, its requests, their context."""
        return self.decode_step + self.decode_request * batch + self.decode_context_token * context

    def move(self, tokens: int) -> float:
        """A handoff and its tokens."""
        return self.move_fixed + self.move_token * tokens

    def load(self, tokens: int) -> float:
        """From host memory."""
        return self.load_token * tokens


def measured(path: Path) -> Measured:
    """Read measurements; raises UsageError."""
    try:
        measured = msgspec.json.decode(path.read_bytes(), type=Measured)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"{path} has no measurements that can be used: {error}") from error
    if 0 in (measured.pool_tokens, measured.page, measured.chunk, measured.cores):
        raise UsageError(f"{path}: pool_tokens, page, chunk and cores must be above 0")
    if below := [
        name for name, value in msgspec.structs.asdict(measured).items() if (value or 0) < 0
    ]:
        raise UsageError(f"{path}: {below[0]} must not be below 0")
    return measured
