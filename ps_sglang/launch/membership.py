"""The workers of one launcher in a cluster, the launcher's own or another's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.errors import LaunchError, UsageError
from ps_sglang.gateway_admin import RefusedError
from ps_sglang.gateway_http import Credentials, Json
from ps_sglang.launch.member import Member, may_pass
from ps_sglang.launch.spec import WorkerSpec
from ps_sglang.progress import OnProgress
from ps_sglang.workers.client import WorkersClient

_CLOSE_S: Final = 1.0


class Membership:
    """All `workers`, which join the gateway at `url`, keep their leases, and leave together.

    `named`: they keep the names of their specifications; else the gateway chooses, as another
    launcher may have workers of the same names. They show the gateway these `credentials`, or those
    of the environment.
    """

    def __init__(
        self,
        url: str,
        workers: Iterable[WorkerSpec],
        *,
        allow_unverified: bool,
        named: bool,
        credentials: Credentials | None = None,
        on_progress: OnProgress = lambda line: None,
    ) -> None:
        self.url = url.rstrip("/")
        self._allow_unverified = allow_unverified
        self._named = named
        self._credentials = credentials
        self._on_progress = on_progress
        self.members = {worker.name: self._member(worker) for worker in workers}
        self._heard = True
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []

    def require_gateway(self) -> None:
        """Refuse an address where no gateway answers, before anything is started.

        Raises UsageError, which names the address.
        """
        WorkersClient(self.url, credentials=self._credentials).list()

    def key_file(self, given: Path | None) -> Path:
        """The file with the cluster's key: the one `given`, or the gateway's own.

        Raises UsageError if that is another cluster's, or not on this machine.
        """
        cluster = WorkersClient(self.url, credentials=self._credentials).cluster_key()
        if cluster is None:
            raise UsageError(f"the cluster at {self.url} has no key, so that no worker can join it")
        file = given or Path(cluster["file"])
        try:
            key = ClusterKey.load(file)
        except UsageError as error:
            if given is not None:
                raise
            raise UsageError(
                f"the key of the cluster at {self.url} is not on this machine ({error}): copy that "
                "file from the gateway's and give --cluster-key-file"
            ) from error
        if key.id != cluster["id"]:
            raise UsageError(
                f"{file} is not the key of the cluster at {self.url}: copy {cluster['file']} from "
                "the gateway's machine and give --cluster-key-file"
            )
        return file

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
        for member in self.members.values():
            self._in_background(self._keep, member)

    def drop(self, name: str) -> None:
        """A worker has died: it leaves at once."""
        self._in_background(partial(Member.leave, now=True), self.members.pop(name))

    def add(self, worker: WorkerSpec) -> None:
        """A worker that was dropped is back, maybe on other ports: it joins anew."""
        self.members[worker.name] = self._member(worker)
        self._in_background(self._keep, self.members[worker.name])

    @property
    def hears_gateway(self) -> bool:
        """Whether the gateway answered anybody the last time, or nobody asks it."""
        asking = [member for member in list(self.members.values()) if member.asks]
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
            if self._heard != (heard := self.hears_gateway):
                self._heard = heard
                does = "answers again" if heard else "does not answer; its workers go on asking"
                self._on_progress(f"the gateway at {self.url} {does}")

    def _in_background(self, work: Callable[[Member], None], member: Member) -> None:
        # A daemon, as a gateway that hangs must not hold up an end.
        thread = threading.Thread(
            target=work, args=(member,), name=f"member-{member.title}", daemon=True
        )
        # Those of workers that have left end by themselves.
        self._threads = [one for one in self._threads if one.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _member(self, worker: WorkerSpec) -> Member:
        joining: Json = {"url": worker.url, "allow_unverified": self._allow_unverified}
        if self._named:
            joining["name"] = worker.name
        return Member(self.url, worker.name, joining, self._on_progress, self._credentials)
