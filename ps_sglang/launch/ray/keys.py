"""The key `ray` of a specification: what only `launch --on ray` looks at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from ps_sglang.launch.resources import parse_size


class ActorKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What each of some workers reserves of its host beside GPUs; `memory` is a size like 20GB.

    `resources` are Ray's custom ones, by name.
    """

    cpus: float = 1.0
    memory: str | None = None
    resources: dict[str, float] = {}

    def problems(self) -> Iterator[str]:
        """What is wrong with it in itself."""
        if not self.cpus >= 0:
            yield f"cpus is {self.cpus:g}, must be at least 0"
        if self.memory is not None:
            try:
                parse_size(self.memory)
            except ValueError as error:
                yield f"memory: {error}"
        for name, amount in self.resources.items():
            if name in ("CPU", "GPU", "memory"):
                yield f"resources: {name} is none of your own; there are cpus, memory, and tp"
            elif not amount > 0:
                yield f"resources: {name} is {amount:g}, must be above 0"


class ScaledKeys(ActorKeys, frozen=True, forbid_unknown_fields=True):
    """The same of workers whose number follows the load; both bounds are `replicas` by default."""

    min_replicas: int | None = None
    max_replicas: int | None = None


class ScalingKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a decoder gets another worker, or loses one.

    Each worker is to have `target_requests` unfinished requests at most. More of them for
    `up_after` seconds bring workers. So few that one worker less would do, for `down_after`
    seconds, take one away.
    """

    target_requests: int = 16
    up_after: float = 10.0
    down_after: float = 120.0

    def problems(self) -> Iterator[str]:
        """What is wrong with it in itself."""
        if self.target_requests < 1:
            yield f"target_requests is {self.target_requests}, must be at least 1"
        for name in ("up_after", "down_after"):
            if not getattr(self, name) >= 0:
                yield f"{name} is {getattr(self, name):g}, must be at least 0 seconds"


class RayKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Workers by what they do: `decoders` by their names, `adapters` those of all adapters."""

    prefill: ActorKeys = ActorKeys()
    adapters: ScaledKeys = ScaledKeys()
    decoders: dict[str, ScaledKeys] = {}
    scaling: ScalingKeys = ScalingKeys()

    def problems(self) -> Iterator[str]:
        """What is wrong with it in itself, each with its place."""
        parts: dict[str, ActorKeys | ScalingKeys] = {
            "prefill": self.prefill,
            "adapters": self.adapters,
            "scaling": self.scaling,
            **{f"decoders.{name}": one for name, one in self.decoders.items()},
        }
        for place, part in parts.items():
            for problem in part.problems():
                yield f"ray.{place}: {problem}"


NO_RAY_KEYS: Final = RayKeys()
