"""A worker's place in a cluster: it joins, renews its lease, and joins again where it is unknown.

The gateway forgets who does not renew, and knows nobody when it has restarted. So a worker needs
nobody to bring it back: it says that it is there until it is told that it was removed.
"""

from __future__ import annotations

import contextlib
from typing import Final

from ps_sglang.errors import UsageError
from ps_sglang.gateway_admin import RefusedError
from ps_sglang.gateway_http import Credentials, Json
from ps_sglang.progress import OnProgress
from ps_sglang.workers.client import WorkersClient

JOIN_S: Final = 40.0
"""For an answer to joining: the gateway asks the worker's engine, for up to 30 s."""
RENEW_S: Final = 5.0
DRAIN_S: Final = 30.0
RETRY_S: Final = 0.5
"""Between tries at a gateway that does not answer, or cannot take the worker yet."""
_RENEWALS: Final = 6  # in a lease's time
_MAY_PASS: Final = frozenset(("no_worker", "worker_conflict", "worker_unreachable"))


class Member:
    """One worker, and its lease at the gateway at `url`.

    `joining` is the body of its POST /workers, and `title` what messages call it.
    """

    def __init__(
        self,
        url: str,
        title: str,
        joining: Json,
        on_progress: OnProgress,
        credentials: Credentials | None = None,
    ) -> None:
        self.title = title
        self.name: str | None = None
        """What the gateway calls it, None while it does not know it."""
        self.state: str | None = None
        """As the gateway last saw it; None while nobody knows."""
        self.heard = True
        """Whether the gateway answered the last question, whatever it said."""
        self._url = url
        self._credentials = credentials
        self._joining = {**joining, "lease": True}
        self._on_progress = on_progress
        self._lease = ""
        self._interval_s = RETRY_S
        self._removed = False
        self._reported: str | None = None

    @property
    def asks(self) -> bool:
        """Whether it wants to be in the cluster: it was not removed, and did not leave."""
        return not self._removed

    def join(self) -> None:
        """Try once. Raises UsageError: RefusedError if the gateway refuses it."""
        joined = self._client(JOIN_S).add(self._joining)
        self.name, self.state = joined["name"], joined["state"]
        self._lease = joined["lease"]["id"]
        self._interval_s = joined["lease"]["seconds"] / _RENEWALS

    def step(self) -> float | None:
        """Say once that it is there; returns in how many seconds to do so again, None for never."""
        if self._removed:
            return None
        try:
            if self.name is None:
                self.join()
                self._report(f"{self.title} has joined again, as {self.name}")
            else:
                self.state = self._client(RENEW_S).renew(self.name, self._lease)["state"]
            self.heard = True
            self._reported = None
            return self._interval_s
        except RefusedError as error:
            self.heard = True
            return self._refused(error)
        except UsageError:
            self.heard, self.state = False, None
            return RETRY_S

    def drain(self) -> None:
        """It gets nothing new from now on. Never fails."""
        if self.name is not None:
            with contextlib.suppress(UsageError):
                self._client(RENEW_S).drain(self.name)

    def leave(self, *, now: bool = False) -> None:
        """It leaves with its last request, or after 30 s; or `now`. Never fails."""
        name, self.name, self._removed = self.name, None, True
        if name is None:
            return
        for at_once in dict.fromkeys((now, True)):
            try:
                self._client(DRAIN_S).remove(name, now=at_once, lease=self._lease)
            except RefusedError:
                return  # it has left already
            except UsageError:
                continue  # its requests take too long
            return

    def _refused(self, error: RefusedError) -> float | None:
        if self._removed:  # by itself, meanwhile
            return None
        if error.code == "worker_removed":
            self._removed, self.name, self.state = True, None, None
            self._on_progress(f"{self.title} was removed from the cluster, and stays away")
            return None
        self.state = None
        if self.name is not None:  # the gateway has restarted, or has not heard from it for long
            self.name = None
            return 0.0
        self._report(f"{self.title} cannot join: {error}")
        return RETRY_S

    def _client(self, timeout_s: float) -> WorkersClient:
        return WorkersClient(self._url, timeout_s, self._credentials)

    def _report(self, line: str) -> None:
        if line != self._reported:
            self._reported = line
            self._on_progress(line)


def may_pass(error: RefusedError) -> bool:
    """Whether a worker that was refused may be taken later, unchanged."""
    return error.code in _MAY_PASS
