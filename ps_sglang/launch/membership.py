"""The workers of one launcher in a cluster, the launcher's own or another's."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Final

from ps_sglang.errors import LaunchError, UsageError
from ps_sglang.gateway_admin import RefusedError
from ps_sglang.gateway_http import Json
from ps_sglang.launch.member import Member, may_pass
from ps_sglang.launch.spec import WorkerSpec
from ps_sglang.progress import OnProgress
from ps_sglang.workers.client import WorkersClient

_CLOSE_S: Final = 1.0


class Membership:
    """All `workers`, which join the gateway at `url`, keep their leases, and leave together.

    `named`: they keep the names of their specifications; else the gateway chooses, as another
    launcher may have workers of the same names.
    """

    def __init__(
        self,
        url: str,
        workers: Iterable[WorkerSpec],
        *,
        allow_unverified: bool,
        named: bool,
        on_progress: OnProgress = lambda line: None,
    ) -> None:
        self.url = url.rstrip("/")
        self.members = {
            worker.name: Member(
                self.url, worker.name, _joining(worker, allow_unverified, named), on_progress
            )
            for worker in workers
        }
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []

    def require_gateway(self) -> None:
        """Refuse an address where no gateway answers, before anything is started.

        Raises UsageError, which names the address.
        """
        WorkersClient(self.url).list()

    def join(self) -> Sequence[str]:
        """Have ready workers join, in their order; returns the names of those that could not yet.

        Raises LaunchError if the gateway refuses one for good, with all differences.
        """
        waiting = [name for name, member in self.members.items() if member.name is None]
        for number, name in enumerate(waiting):
            try:
                self.members[name].join()
            except RefusedError as error:
                if may_pass(error):
                    return waiting[number:]
                raise LaunchError(f"{name}: {error}", worker=name) from error
            except UsageError:
                return waiting[number:]
        return ()

    def keep(self) -> None:
        """From now on all say that they are there, each by itself."""
        for name, member in self.members.items():
            # Daemons, as a gateway that hangs must not hold up an end.
            thread = threading.Thread(
                target=self._keep, args=(member,), name=f"lease-{name}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    @property
    def hears_gateway(self) -> bool:
        """Whether the gateway answered anybody the last time, or nobody asks it."""
        asking = [member for member in self.members.values() if member.asks]
        return not asking or any(member.heard for member in asking)

    def close(self) -> None:
        """Say nothing any more."""
        self._closed.set()
        for thread in self._threads:
            thread.join(_CLOSE_S)

    def leave(self) -> None:
        """Have all leave: their requests end, or after 30 s go to others. Never fails."""
        self.close()
        for member in self.members.values():  # none gets anything new while another has requests
            member.drain()
        for member in self.members.values():
            member.leave()

    def _keep(self, member: Member) -> None:
        seconds: float | None = 0.0
        while seconds is not None and not self._closed.wait(seconds):
            seconds = member.step()


def _joining(worker: WorkerSpec, allow_unverified: bool, named: bool) -> Json:
    joining: Json = {"url": worker.url, "allow_unverified": allow_unverified}
    return {**joining, "name": worker.name} if named else joining
