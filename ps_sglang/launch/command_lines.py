"""SGLang's flags of a launch: checked, put together for each worker, and read back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ps_sglang.contract.served_template import check_served_template
from ps_sglang.errors import ContractError, UsageError
from ps_sglang.gateway.config import ChatFlags
from ps_sglang.gateway.index.chat import ChatTemplate, NoChatText
from ps_sglang.launch import flag_check, flags, lora
from ps_sglang.launch.environment import encode_adapters
from ps_sglang.launch.parsers import parsers
from ps_sglang.launch.placement import Placement
from ps_sglang.launch.spec import ClusterSpec, Entry, Role
from ps_sglang.launch.unsafe_flags import refuse_unsafe
from ps_sglang.tensor_parallel import handoff_problem

_SEEDED_SAMPLERS: Final = ("pytorch", "flashinfer")  # as engine/sampling/seeds.py registers them


def check_flags(spec: ClusterSpec) -> ClusterSpec:
    """`spec` with every SGLang flag's name in full.

    Raises UsageError if SGLang would not take a flag or its value, or the launcher sets it itself.
    """
    return replace(
        spec,
        decoders=tuple(
            replace(one, engine_args=_checked(spec, one.engine_args, f"engine_args of {one.model}"))
            if isinstance(one, Entry)
            else one
            for one in spec.decoders
        ),
        engine_args=_checked(spec, spec.engine_args, "engine flags"),
        prefill_engine_args=_checked(spec, spec.prefill_engine_args, "--prefill-engine-args"),
        decode_engine_args=_checked(spec, spec.decode_engine_args, "--decode-engine-args"),
    )


def _checked(spec: ClusterSpec, words: Sequence[str], source: str) -> tuple[str, ...]:
    flags.refuse_owned(words, source)  # by the name that was given
    full = flag_check.checked(words, source)
    flags.refuse_owned(full, source)
    sampler = flags.value_of(full, "--sampling-backend")
    if sampler not in (None, *_SEEDED_SAMPLERS):
        raise UsageError(
            f"{source}: --sampling-backend {sampler} would ignore the seeds of requests; choose "
            f"{' or '.join(_SEEDED_SAMPLERS)}"
        )
    if not spec.allow_unsafe:
        refuse_unsafe(full, source)
    return full


def command_lines(
    spec: ClusterSpec,
    placements: Sequence[Placement],
    context_length: int,
    *,
    cpu: bool,
    cuda: bool,
) -> dict[str, tuple[str, ...]]:
    """Of each worker what a user may set: the launcher's defaults and the user's own flags."""
    parser_flags = parsers(spec, placements)
    built = {}
    for placement in placements:
        user = placement.user_args(spec)
        default = dict(
            flags.defaults(placement.role, cpu=cpu, cuda=cuda, context_length=context_length)
        )
        if placement.lora:
            default |= lora.defaults(placement.model.path, placement.reports, user, cpu=cpu)
        command_line = flags.merge(default | parser_flags[placement.name], user)
        if placement.lora:
            encode_adapters(placement.adapters or ())  # refuses too many
            lora.check(placement.name, command_line, placement.reports)
        built[placement.name] = command_line
    return built


def check_tp_sizes(
    placements: Sequence[Placement], lines: Mapping[str, Sequence[str]], backend: str
) -> None:
    """Refuse workers over so many GPUs that no page gets from one role to the other.

    Raises ContractError, which has every worker's size.
    """
    sizes = {one.name: flags.tp_size(one.resources.tp, lines[one.name]) for one in placements}
    prefill, decode = (
        {sizes[one.name] for one in placements if one.role is role and sizes[one.name] > 0}
        for role in (Role.PREFILL, Role.DECODE)
    )
    problems = (handoff_problem(backend, one, other) for one in prefill for other in decode)
    if (problem := next(filter(None, problems), None)) is not None:
        row = f"{flags.TP_SIZE}: {', '.join(f'{name} {size}' for name, size in sizes.items())}"
        raise ContractError(f"{row}; {problem}", (row,))


def token_limits(lines: Iterable[Sequence[str]]) -> Iterator[int]:
    """Token counts in the flags beyond which a request cannot grow."""
    for words in lines:
        for flag in ("--context-length", "--max-total-tokens"):
            value = flags.value_of(words, flag)
            if value is None:
                continue
            yield flag_check.size(value)


def chat_flags(spec: ClusterSpec) -> ChatFlags:
    """By which flags workers render chats; they must be the same for all roles.

    Raises UsageError for a template that cannot be loaded, or variables that are no JSON object.
    """
    words = spec.role_args(Role.DECODE)
    template = flags.value_of(words, "--chat-template")
    if template is not None:
        check_served_template(template)
        if template.endswith(".jinja"):
            _check_jinja(template)
    kwargs = flags.value_of(words, "--default-chat-template-kwargs")
    try:
        variables = json.loads(kwargs or "{}")
    except ValueError as error:
        raise UsageError(f"--default-chat-template-kwargs {kwargs}: no JSON: {error}") from error
    if not isinstance(variables, dict):
        raise UsageError(f"--default-chat-template-kwargs {kwargs}: must be a JSON object")
    return ChatFlags(template, flags.value_of(words, "--hf-chat-template-name"), variables)


def _check_jinja(template: str) -> None:
    try:
        ChatTemplate.given(template)
    except NoChatText as error:
        raise UsageError(f"--chat-template {template}: {error}") from error
