"""Whether the process at a worker's address is that worker.

Every answer names the process that gives it (`ps_sglang.identity`). Another than the one before is
asked who it is, and gets no request until it has said that it is the same worker, restarted. If it
is not, it is refused until the right one is back, or joins anew (POST /workers).
"""

import logging
from collections.abc import Callable
from typing import Final

import aiohttp

from ps_sglang.gateway.errors import GatewayError
from ps_sglang.gateway.routing.pool import AnyMember
from ps_sglang.gateway.workers import admission
from ps_sglang.identity import Facts

log = logging.getLogger("ps_sglang.gateway")

UNHEARD: Final = "it has not said who it is"


class Recognition:
    """Sets `facts`, `incarnation`, `unheard` and `refused` of each member.

    Register functions in `admitted` to be told of each process that was found to be its worker,
    also of a worker's first.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        seconds: float,
        capacity: int,
        suspected: Callable[[AnyMember], None],
        restarted: Callable[[AnyMember], None],
    ) -> None:
        """A process has `seconds` to answer, and must hold requests of `capacity` tokens.

        `suspected` is told of a worker when another process is found in its place, `restarted`
        when that turns out to be the worker.
        """
        self.admitted: list[Callable[[AnyMember], None]] = []
        self._session = session
        self._seconds = seconds
        self._capacity = capacity
        self._suspected = suspected
        self._restarted = restarted
        # The incarnation that was refused in a member's place; empty for one that names itself not.
        self._refused: dict[AnyMember, str] = {}

    def meet(self, member: AnyMember) -> None:
        """A worker joins: by its own word, or as the configuration says."""
        if member.incarnation is None:
            member.unheard, member.problem = True, UNHEARD
        else:
            self._tell_admitted(member)

    def forget(self, member: AnyMember) -> None:
        """A worker has left."""
        self._refused.pop(member, None)

    async def is_known(self, member: AnyMember, seen: str | None) -> bool:
        """Whether the process `seen` at the worker's address is the worker; asks a new one."""
        if seen is not None and seen == member.incarnation:
            # Another may have been in its place for a while.
            self._clear(member)
            return True
        if self._refused.get(member) == (seen or ""):
            return False
        if member.can_be_asked or member.draining:
            member.unheard = True
            self._suspected(member)
        try:
            facts = await admission.ask(self._session, member.worker.url, self._seconds)
        except GatewayError as error:
            if seen is None:  # it is not even SGLang's
                self._refuse(member, "", [error.message])
            return False
        found = admission.changes(member.worker, member.facts, facts, self._capacity)
        if found:
            self._refuse(member, seen or "", found)
        elif facts is not None and facts.incarnation == seen:
            self._admit(member, facts)
            return True
        return False

    async def admit_swapped(self, member: AnyMember) -> None:
        """The worker has other weights now, by the gateway's own wish; raises GatewayError."""
        facts = await admission.ask(self._session, member.worker.url)
        if facts is not None and facts.incarnation == member.incarnation:
            member.facts = facts

    def _clear(self, member: AnyMember) -> None:
        member.unheard, member.refused = False, None
        self._refused.pop(member, None)

    def _refuse(self, member: AnyMember, incarnation: str, reasons: list[str]) -> None:
        self._refused[member] = incarnation
        member.unheard = False
        member.refused = (
            f"another worker answers at its address: {'; '.join(reasons)}. Start the one that was "
            "here, or let this one join anew (POST /workers)"
        )
        log.warning("%s is refused: %s", member.worker.title, member.refused)

    def _admit(self, member: AnyMember, facts: Facts) -> None:
        self._clear(member)
        member.incarnation = facts.incarnation
        if member.facts is None:
            member.facts = facts
        else:
            self._restarted(member)
            log.info("%s has restarted, and is the same", member.worker.title)
        self._tell_admitted(member)

    def _tell_admitted(self, member: AnyMember) -> None:
        for tell in self.admitted:
            tell(member)
