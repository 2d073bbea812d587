"""A request for text, checked: whom it asks, for which samples, and what it tells besides."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from msgspec.structs import replace as replace_hints

from ps_sglang.gateway import ids
from ps_sglang.gateway.bodies import hints, others_hints, session_id, validation
from ps_sglang.gateway.bodies.checks import Body
from ps_sglang.gateway.bodies.hints import Hints
from ps_sglang.gateway.bodies.others_hints import OthersHints
from ps_sglang.gateway.bodies.reading import decode_body
from ps_sglang.gateway.bodies.samples import Endpoint, Sample, Served, split
from ps_sglang.gateway.bodies.session_id import SessionName
from ps_sglang.gateway.errors import BadRequest, ModelNotFound


@dataclass(frozen=True)
class GenerationRequest:
    """A checked request. `listed`: the client of /generate expects a list of results.

    `session` is the conversation's id, `named` whether the client gave it.
    `ancestors` are the conversations above it, the nearest first. `names_rid`: the samples' ids
    begin with one of the client's.
    """

    endpoint: Endpoint
    decoder: str
    stream: bool
    samples: tuple[Sample, ...]
    listed: bool
    hints: Hints
    session: str | None
    named: bool
    names_rid: bool = False
    ancestors: tuple[str, ...] = ()

    @property
    def is_single(self) -> bool:
        """Whether the engine's answer is the client's answer, byte for byte."""
        return len(self.samples) == 1 and not self.listed


def choose_decoder(named: object, in_path: str | None, decoders: Collection[str]) -> str:
    """The decoder that a request is for: by its URL, else by its body, else the only one."""
    if named is not None and not isinstance(named, str):
        raise BadRequest(f"`model` must be a text, not {named!r}.", param="model")
    if in_path is not None:
        if in_path not in decoders:
            raise ModelNotFound(in_path, decoders)
        # Load generators send a name of their own to the URL of a decoder.
        if named in decoders and named != in_path:
            raise BadRequest(
                f"The body's `model` is {named!r}, but the URL is that of model {in_path!r}: send "
                f"{in_path!r}, or leave `model` out.",
                param="model",
                code="model_mismatch",
            )
        return in_path
    if named is not None:
        if named not in decoders:
            raise ModelNotFound(named, decoders)
        return named
    if len(decoders) == 1:
        return next(iter(decoders))
    raise BadRequest(f"`model` is missing; served models: {', '.join(decoders)}.", param="model")


def parse(
    endpoint: Endpoint,
    content: bytes,
    in_path: str | None,
    headers: Mapping[str, str],
    served: Served,
) -> GenerationRequest:
    """Check a request and split it into samples; raises BadRequest."""
    return check(endpoint, decode_body(content), in_path, headers, served)


def check(
    endpoint: Endpoint,
    body: Body,
    in_path: str | None,
    headers: Mapping[str, str],
    served: Served,
) -> GenerationRequest:
    """As `parse`, for a body that was read already; it is taken apart."""
    decoder = choose_decoder(body.pop("model", None), in_path, served.decoders)
    validation.refuse_unsupported(body)
    request_hints = hints.read(body.pop("hints", None), headers.get(hints.HEADER))
    named = session_id.read(body, headers)
    others = others_hints.read(body, headers)
    request_hints = _with_others(request_hints, others, body)
    session = _session(named, request_hints)
    if request_hints.priority is not None:
        body["priority"] = request_hints.priority
    names_rid = body.get("rid") is not None
    samples, listed = split(endpoint, body, served)
    if others.prefetch and len(samples) == 1 and not request_hints.release:
        request_hints = replace_hints(request_hints, next=request_hints.next or decoder)
    ours = {}
    if session is not None:
        ours["session_id"] = session_id.for_workers(served.tenant, session)
    if endpoint is not Endpoint.GENERATE:
        ours["model"] = decoder
    samples = tuple(replace(sample, body={**sample.body, **ours}) for sample in samples)
    _check_next(request_hints, samples, served)
    stream = bool(samples[0].body.get("stream"))
    return GenerationRequest(
        endpoint,
        decoder,
        stream,
        samples,
        listed,
        request_hints,
        session,
        named is not None,
        names_rid,
        () if named is None else named.ancestors,
    )


def _with_others(hints: Hints, others: OthersHints, body: Body) -> Hints:
    """The hints, and for what they do not say those of others; `body` may have a priority."""
    release = hints.release or (others.release and hints.pin is None and hints.next is None)
    pin = None if release else (others.pin if hints.pin is None else hints.pin)
    priority = hints.priority
    if priority is None and body.get("priority") is None:
        priority = others.priority
    return replace_hints(hints, pin=pin, release=release, priority=priority)


def _session(named: SessionName | None, hints: Hints) -> str | None:
    """Workers pin and release what belongs to a session, so hints about pages need one."""
    if named is None and (hints.pin is not None or hints.release):
        return f"once-{ids.unique()}"
    return None if named is None else named.id


def _check_next(hints: Hints, samples: Sequence[Sample], served: Served) -> None:
    if hints.next is None:
        return
    if hints.next not in served.decoders:
        raise BadRequest(
            f"`hints.next` names the model {hints.next!r}, which does not exist; served models: "
            f"{', '.join(served.decoders)}.",
            param="hints",
        )
    if len(samples) > 1:
        raise BadRequest(
            f"`hints.next` needs one answer to continue, but the request asks for {len(samples)}.",
            param="hints",
        )
