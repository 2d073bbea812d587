"""What we ask of Ray; the only module, with `actor`, that imports it."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
from collections.abc import Sequence
from typing import Any, Final

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ps_sglang.errors import LaunchError, UsageError
from ps_sglang.launch.ray.actor import ProcessActor
from ps_sglang.launch.ray.command import ChildEnd
from ps_sglang.launch.ray.placement import Bundle

ADDRESS_VARIABLE: Final = "RAY_ADDRESS"

Actor = Any
"""Ray's handle of a ProcessActor."""

# An actor's `stop` must be heard while it runs.
_CALLS_AT_ONCE: Final = 3
_FOREVER: Final = -1
_CONNECT_S: Final = 5.0


class RaySession:
    """A connection to a running Ray cluster, and what was reserved there."""

    def __init__(self, address: str | None) -> None:
        """Raises UsageError if there is no cluster; None finds that of $RAY_ADDRESS, or this host.

        Ray itself would start a cluster of one node then.
        """
        address = address or os.environ.get(ADDRESS_VARIABLE) or "auto"
        try:
            _require_listener(address)
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"no Ray cluster answers at {address!r} ({str(error).strip()}): start one with "
                f"`ray start --head`, or give --ray-address or ${ADDRESS_VARIABLE}"
            ) from error
        self._group: PlacementGroup | None = None

    @property
    def nodes(self) -> list[Bundle]:
        """What each living node has in all."""
        return [node["Resources"] for node in _alive()]

    @property
    def hosts(self) -> set[str]:
        """The addresses of the living nodes."""
        return {node["NodeManagerAddress"] for node in _alive()}

    @property
    def free(self) -> Bundle:
        """What nobody has reserved, of all nodes together."""
        free: Bundle = ray.available_resources()  # type: ignore[no-untyped-call]
        return free

    @property
    def has_gpus(self) -> bool:
        """Whether Ray knows of GPUs."""
        return any("GPU" in node for node in self.nodes)

    def reserve(self, bundles: list[Bundle]) -> None:
        """Begin to reserve all bundles, near each other: pages then travel through memory."""
        self._group = placement_group(bundles, strategy="PACK", name="ps_sglang")

    def is_reserved(self, seconds: float) -> bool:
        """Whether Ray has reserved them, after so many seconds at most."""
        assert self._group is not None, "reserve comes first"
        reserved: bool = self._group.wait(seconds)
        return reserved

    def actor(self, name: str, bundle: Bundle, index: int | None) -> Actor:
        """A new actor, in the reserved bundle `index` or outside of the reservation.

        Ray restarts it on another node as often as its node dies, and calls `run` there again.
        """
        kinds = dict(bundle)
        options: dict[str, Any] = {
            "num_cpus": kinds.pop("CPU", 0),
            "num_gpus": kinds.pop("GPU", 0),
            "memory": kinds.pop("memory", None),
            "resources": kinds,
        }
        if index is not None:
            assert self._group is not None, "reserve comes first"
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=index
            )
        return (
            ray.remote(ProcessActor)
            .options(
                name=name,
                max_restarts=_FOREVER,
                max_task_retries=_FOREVER,
                max_concurrency=_CALLS_AT_ONCE,
                **options,
            )
            .remote(name)
        )

    def get(self, promise: Any) -> Any:
        """What an actor answers; raises LaunchError if Ray cannot start it."""
        try:
            return ray.get(promise)
        except RayError as error:
            raise LaunchError(f"Ray cannot start an actor: {error}") from error

    def wait(self, promises: Sequence[Any], seconds: float) -> list[Any]:
        """Those that are kept, as soon as one is."""
        if not promises:
            threading.Event().wait(seconds)
            return []
        ready, _ = ray.wait(list(promises), num_returns=1, timeout=seconds)
        return list(ready)

    def wait_all(self, promises: Sequence[Any], seconds: float) -> None:
        """Until all are kept, or so many seconds are over."""
        if promises:
            ray.wait(list(promises), num_returns=len(promises), timeout=seconds)

    def end_of(self, run: Any) -> ChildEnd:
        """How a `run` ended; an actor that Ray could not start, or gave up, has status 1."""
        try:
            end: ChildEnd = ray.get(run)
        except RayError as error:
            return ChildEnd(1, str(error))
        return end

    def kill(self, actor: Actor) -> None:
        """End an actor for good."""
        ray.kill(actor)

    def close(self) -> None:
        """Give back what was reserved, and disconnect."""
        if self._group is not None:
            remove_placement_group(self._group)
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT: Ray itself would try for minutes."""
    if (match := re.fullmatch(r"\[?([^/\[\]]+)\]?:(\d+)", address)) is not None:
        socket.create_connection((match[1], int(match[2])), _CONNECT_S).close()


def _alive() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]
