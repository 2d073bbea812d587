"""A worker's identity as it publishes it, and how a request reaches that worker and no other.

A worker is a process with an incarnation, a random text that no other process has. It is named in
each answer of the worker's server, under HEADER. A request that carries HEADER is refused with
OTHER_PROCESS by any other incarnation, so that a process which takes an address over is never
taken for the one before it.

What a worker publishes about itself stands under KEY in its `/server_info`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import msgspec

KEY: Final = "ps_sglang"
HEADER: Final = "x-ps-sglang-incarnation"
UNVERIFIED_HEADER: Final = "x-ps-sglang-allow-unverified"
"""With the value 1, a worker loads an adapter that has no manifest, too."""
OTHER_PROCESS: Final = 421
"""HTTP's "Misdirected Request"."""
ENGINE_SILENCE_S: Final = 120
"""A worker whose engine says nothing for so long is given up, by itself and by the gateway. SGLang
would wait for 20 s, and a step over long prompts can take longer on a CPU."""

_MAY_CHANGE: Final = frozenset(
    ("incarnation", "common", "capacity", "problem", "adapters", "adapter_folders")
)


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker publishes about itself.

    `role` is SGLang's disaggregation mode and `model` its served model name. `weights` is the
    digest of what it serves (`contract.weights_digest`), `trained_on` the fingerprint of the base
    in a decoder's manifest, None without one. `common` holds what all workers of a cluster must
    have in common, item by item. `bootstrap_port` is a prefill worker's. `events` and
    `events_control` are the addresses of its event stream, None without one.
    `context_length` is the one that it was started with, if any, and `capacity` what its KV pool
    holds, both in tokens. `adapters` are what a worker of LoRA decoders has, by the name that
    `adapter_name` makes: the digest of each one's weights; None for a worker that takes none. Their
    folders are in `adapter_folders`.
    `tp_size` is its tensor parallelism, over how many GPUs its KV heads are divided.
    `problem` says why the rest is missing.
    """

    incarnation: str
    role: Literal["null", "prefill", "decode"]
    model: str
    capacity: int
    weights: str | None = None
    trained_on: str | None = None
    common: dict[str, Any] = {}
    bootstrap_port: int | None = None
    events: str | None = None
    events_control: str | None = None
    context_length: int | None = None
    tp_size: Annotated[int, msgspec.Meta(ge=1)] = 1
    adapters: dict[str, str] | None = None
    adapter_folders: dict[str, str] = {}
    problem: str | None = None

    def changes(self, now: WorkerInfo) -> Iterator[str]:
        """Everything in which `now` is another worker than this, one line each.

        The same worker may come back as another process, with a pool of another size.
        """
        for item in self.__struct_fields__:
            if item not in _MAY_CHANGE:
                yield from _change(item.replace("_", " "), getattr(self, item), getattr(now, item))
        for item in self.common | now.common:
            yield from _change(item, self.common.get(item), now.common.get(item))


def _change(item: str, expected: object, actual: object) -> Iterator[str]:
    if expected != actual:
        yield f"{item}: wanted {expected}, found {actual}"


def adapter_name(decoder: str, version: int) -> str:
    """What SGLang calls a decoder's adapter: a replaced one is another, with a higher version."""
    return f"{decoder}@{version}"


def is_adapter_name(name: str) -> bool:
    """Whether `adapter_name` may have made it."""
    decoder, _, version = name.rpartition("@")
    return bool(decoder) and version.isdecimal()


def split_adapter_name(name: str) -> tuple[str, int]:
    """The decoder and the version in a name that `adapter_name` made; raises ValueError."""
    if not is_adapter_name(name):
        raise ValueError(f"{name!r} is not like DECODER@VERSION")
    decoder, _, version = name.rpartition("@")
    return decoder, int(version)
