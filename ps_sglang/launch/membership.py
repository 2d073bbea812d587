"""Workers of this launcher in the cluster of another: they join when ready, and leave first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ps_sglang.cluster_key import ClusterKey
from ps_sglang.errors import LaunchError, UsageError
from ps_sglang.gateway_admin import RefusedError
from ps_sglang.launch.spec import WorkerSpec
from ps_sglang.workers.client import WorkersClient

_DRAIN_S: Final = 30.0


class Membership:
    """What has joined the gateway at `url`, under the names that the gateway gave."""

    def __init__(self, url: str, *, allow_unverified: bool) -> None:
        self.url = url.rstrip("/")
        self._allow_unverified = allow_unverified
        self._names: list[str] = []

    def require_gateway(self) -> None:
        """Refuse an address where no gateway answers, before anything is started.

        Raises UsageError, which names the address.
        """
        WorkersClient(self.url).list()

    def key_file(self, given: Path | None) -> Path:
        """The file with the cluster's key: the one `given`, or the gateway's own.

        Raises UsageError if that is another cluster's, or not on this machine.
        """
        cluster = WorkersClient(self.url).cluster_key()
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

    def join(self, workers: Iterable[WorkerSpec]) -> None:
        """Have ready workers join.

        Raises LaunchError if the gateway refuses one, with all differences, or answers no more.
        """
        client = WorkersClient(self.url)
        for worker in workers:
            joining = {"url": worker.url, "allow_unverified": self._allow_unverified}
            try:
                self._names.append(client.add(joining)["name"])
            except UsageError as error:
                raise LaunchError(f"{worker.name}: {error}", worker=worker.name) from error

    def leave(self) -> None:
        """Have all leave: their requests end, or after 30 s go to others. Never fails."""
        names, self._names = self._names, []
        client = WorkersClient(self.url, _DRAIN_S)
        for name in names:  # none gets anything new while another still has requests
            with contextlib.suppress(UsageError):
                client.drain(name)
        for name in names:
            try:
                client.remove(name, now=False)
            except RefusedError:
                continue  # the last prefill worker, or one that has left already
            except UsageError:
                with contextlib.suppress(UsageError):
                    client.remove(name, now=True)
