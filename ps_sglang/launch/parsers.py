"""Parsers of tool calls and reasoning: what manifests name becomes flags of the workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ps_sglang.contract import DecoderReport
from ps_sglang.contract.manifest import parser_problem
from ps_sglang.errors import UsageError
from ps_sglang.launch import flags
from ps_sglang.launch.placement import Placement
from ps_sglang.launch.spec import ClusterSpec, Role

_TOOLS, _REASONING = flags.PARSERS
_FIELDS: Final = {_TOOLS: "tool_call_parser", _REASONING: "reasoning_parser"}


def parsers(spec: ClusterSpec, placements: Sequence[Placement]) -> dict[str, dict[str, str]]:
    """Each worker's flags of parsers; prefill workers have those on which all others agree.

    Raises UsageError if decoders of one worker differ and no flag of the user's says which.
    """
    named = {
        placement.name: _agreed(placement.reports, placement.user_args(spec))
        for placement in placements
        if placement.role is not Role.PREFILL
    }
    sets = [set(flags_of_one.items()) for flags_of_one in named.values()]
    common = dict(set.intersection(*sets)) if sets else {}
    return {placement.name: named.get(placement.name, common) for placement in placements}


def check_parsers(command_lines: Mapping[str, Sequence[str]]) -> None:
    """Refuse parsers that SGLang does not have; those of manifests have been checked before."""
    for name, words in command_lines.items():
        if problem := parser_problem(*(flags.value_of(words, flag) for flag in flags.PARSERS)):
            raise UsageError(f"engine flags of {name}: {problem}")


def _agreed(reports: Sequence[DecoderReport], user: Sequence[str]) -> dict[str, str]:
    agreed = {}
    for flag, field in _FIELDS.items():
        if flags.decides(user, flag):
            continue
        named = {report.name: getattr(report.manifest, field, None) for report in reports}
        # An answer without a call reads alike with and without that parser, reasoning does not.
        needed = {parser for parser in named.values() if parser or flag == _REASONING}
        if len(needed) > 1:
            each = ", ".join(f"{name} {parser or 'none'}" for name, parser in named.items())
            raise UsageError(
                f"decoders that share a worker need one {flag}, but their manifests name {each}; "
                f"give {flag}, or give the one that differs as a whole model (ps-sglang merge)"
            )
        if parser := next(iter(needed), None):
            agreed[flag] = parser
    return agreed
