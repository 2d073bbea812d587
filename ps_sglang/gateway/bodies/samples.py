"""From a request body to single samples, each a body of its own for one pair of workers.

SGLang shares one bootstrap room among the samples of `n > 1`, which a handoff cannot serve, so
the gateway sends each sample of each prompt alone. Sample i of a prompt uses seed + i.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

from ps_sglang.gateway import ids
from ps_sglang.gateway.bodies import fields, size, validation
from ps_sglang.gateway.bodies.checks import Body, Limits, refuse
from ps_sglang.gateway.errors import BadRequest
from ps_sglang.gateway.index.prompt import Prompt
from ps_sglang.gateway.index.prompts import Prompts


class Endpoint(Enum):
    """The three ways to ask for text; the value is the engine's path."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    GENERATE = "/generate"


@dataclass(frozen=True)
class Served:
    """What a tenant's requests are checked against.

    Decoders by name, what engines can take, the tokenizer. The empty tenant is that of a server
    without keys.
    """

    decoders: Collection[str]
    limits: Limits
    prompts: Prompts
    tenant: str


@dataclass(frozen=True)
class Sample:
    """One answer to one prompt.

    `index` is its place in the client's answer, `leads` whether it is the first of its prompt,
    `body` what its workers get, `rid` its id in their logs.
    """

    index: int
    prompt_index: int
    leads: bool
    rid: str
    body: Body
    prompt: Prompt


_LONGEST_SALT = _LONGEST_ID = 256

_PromptOf = Callable[[str], Prompt]
"""Makes a prompt of the salt that it is given."""


def split(endpoint: Endpoint, body: Body, served: Served) -> tuple[tuple[Sample, ...], bool]:
    """The samples of a request, and whether a client of /generate expects a list of results.

    Raises BadRequest.
    """
    return _SPLIT[endpoint](body, served)


def _split_chat(body: Body, served: Served) -> tuple[tuple[Sample, ...], bool]:
    validation.messages(body)
    validation.chat_ids(body, served.limits)
    body = fields.chat_fields(body, served.limits)
    return _openai_samples(
        body, [body], [partial(served.prompts.chat, body)], served, "messages"
    ), False


def _split_completions(body: Body, served: Served) -> tuple[tuple[Sample, ...], bool]:
    texts, _ = validation.prompts(body, "prompt", served.limits)
    body = fields.completions_fields(body, served.limits)
    validation.refuse_echoed_logprobs(body)
    bodies = [{**body, "prompt": prompt} for prompt in texts]
    prompts = [partial(served.prompts.prompt, prompt) for prompt in texts]
    return _openai_samples(body, bodies, prompts, served, "prompt"), False


def _openai_samples(
    body: Body, bodies: Sequence[Body], prompts: Sequence[_PromptOf], served: Served, name: str
) -> tuple[Sample, ...]:
    seed = body.get("seed")

    def for_sample(body: Body, number: int) -> Body:
        sample_body = {**body, "n": 1}
        if seed is not None:
            sample_body["seed"] = _nth_seed(seed, number)
        return sample_body

    return _samples(body, bodies, prompts, body.get("n", 1), for_sample, served, name)


_PER_PROMPT = (
    "sampling_params",
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "return_sampling_mask",
    "sampling_logprobs_mode",
    "custom_logit_processor",
    "watermark",
)


def _split_generate(body: Body, served: Served) -> tuple[tuple[Sample, ...], bool]:
    validation.refuse_prompt_logprobs(body)
    name = _generate_prompt_field(body)
    texts, listed = validation.prompts(body, name, served.limits)
    body = {**body, "sampling_params": validation.objects(body, "sampling_params")}
    batch = len(texts) if listed else None
    bodies = [
        fields.generate_fields({**_pick(body, number, batch), name: prompt}, served.limits)
        for number, prompt in enumerate(texts)
    ]
    n = _generate_n(bodies)
    prompts = [partial(served.prompts.prompt, prompt) for prompt in texts]
    return _samples(body, bodies, prompts, n, _generate_body, served, name), listed or n > 1


def _generate_prompt_field(body: Body) -> str:
    names = [name for name in ("text", "input_ids") if body.get(name) is not None]
    if len(names) != 1:
        raise BadRequest(
            f"Send either `text` or `input_ids`, not {'both' if names else 'neither'}.",
            param="text",
        )
    text = body.get("text")
    if text is not None and not (
        isinstance(text, str)
        or (isinstance(text, list) and all(isinstance(one, str) for one in text))
    ):
        raise BadRequest("`text` must be a text or a list of texts.", param="text")
    tokens = body.get("input_ids")
    among = tokens if isinstance(tokens, list) else [tokens]
    if any(isinstance(one, str) for one in among):
        raise BadRequest("`input_ids` must be a list of token ids.", param="input_ids")
    return names[0]


def _generate_n(bodies: Sequence[Body]) -> int:
    counts = {one["sampling_params"].get("n", 1) for one in bodies}
    if len(counts) > 1:
        raise BadRequest(
            "`sampling_params.n` must be the same for all prompts of a request.",
            param="sampling_params",
        )
    return int(counts.pop())


def _generate_body(one: Body, number: int) -> Body:
    params = {**one["sampling_params"], "n": 1}
    if (seed := params.get("sampling_seed")) is not None:
        params["sampling_seed"] = _nth_seed(seed, number)
    return {**one, "sampling_params": params}


def _pick(body: Body, number: int, batch: int | None) -> Body:
    """The fields of `body` for its prompt `number`; a batch may give them as lists."""
    picked = dict(body)
    for name in _PER_PROMPT:
        if isinstance(body.get(name), list):
            picked[name] = _item(body[name], number, batch, name)
    nested = body.get("token_ids_logprob")
    if isinstance(nested, list) and nested and isinstance(nested[0], list):
        picked["token_ids_logprob"] = _item(nested, number, batch, "token_ids_logprob")
    return picked


def _samples(
    body: Body,
    bodies: Sequence[Body],
    prompts: Sequence[_PromptOf],
    n: int,
    for_sample: Callable[[Body, int], Body],
    served: Served,
    name: str,
) -> tuple[Sample, ...]:
    if len(bodies) * n > validation.MAX_SAMPLES:
        raise BadRequest(
            f"{len(bodies)} prompts with {n} answers each are more than "
            f"{validation.MAX_SAMPLES} answers; split the request.",
            param="n",
        )
    rids = _rids(body, len(bodies), n)
    batch = None if len(bodies) == 1 else len(bodies)
    samples = []
    for number, (one, prompt_of) in enumerate(zip(bodies, prompts, strict=True)):
        salt = _salt(served.tenant, body, number, batch)
        prompt = prompt_of(salt)
        size.check_fits(prompt, served.prompts.longest_token, served.limits.context_length, name)
        for turn in range(n):
            sample_body = for_sample(one, turn)
            sample_body.pop("extra_key", None)
            sample_body.pop("cache_salt", None)
            if salt:
                sample_body["cache_salt"] = salt
            samples.append(
                Sample(number * n + turn, number, turn == 0, next(rids), sample_body, prompt)
            )
    return tuple(samples)


def _salt(tenant: str, body: Body, number: int, batch: int | None) -> str:
    """With whom a prompt shares pages: its tenant, divided further by what the body says.

    SGLang's two ways to say it and the tenant are folded into one salt, as workers' events tell no
    more. None of the three may hold NUL, so no two foldings are alike: without a tenant there is
    one NUL at most, with one there are two at least.
    """
    salt, key = (_division(body, name, number, batch) for name in ("cache_salt", "extra_key"))
    salt = f"{salt}\0{key}" if key else salt
    return f"\0{tenant}\0{salt}" if tenant else salt


def split_salt(salt: str) -> tuple[str, str]:
    """The tenant in a prompt's salt, and what its client divides it by; see `_salt`."""
    if not salt.startswith("\0"):
        return "", salt
    _, tenant, own = salt.split("\0", 2)
    return tenant, own


def _division(body: Body, name: str, number: int, batch: int | None) -> str:
    value = body.get(name)
    if isinstance(value, list):
        value = _item(value, number, batch or 1, name)
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value:
        refuse(name, value, "a text without NUL")
    if len(value) > _LONGEST_SALT:
        raise BadRequest(
            f"`{name}` must have at most {_LONGEST_SALT} characters, not {len(value)}.", param=name
        )
    return value


def _item(values: list[Any], number: int, batch: int | None, name: str) -> Any:
    if batch is None or len(values) != batch:
        raise BadRequest(
            f"`{name}` is a list of {len(values)}, but the request has {batch or 1} prompt(s).",
            param=name,
        )
    return values[number]


def _rids(body: Body, batch: int, n: int) -> Iterator[str]:
    """Engine ids of all samples: the client's id, if it gave one, and a part that is unique.

    SGLang aborts every request whose id starts with a given one, so no id may start another's:
    a client that hangs up must not end the requests of others.
    """
    rid = body.get("rid")
    if rid is None or _is_rid(rid):
        names = [rid or "ps"] * batch
    elif isinstance(rid, list) and len(rid) == batch and all(map(_is_rid, rid)):
        names = rid
    else:
        raise BadRequest(
            f"`rid` must be a text of 1 to {_LONGEST_ID} printable characters, or a list with one "
            "per prompt.",
            param="rid",
        )
    unique = ids.unique()
    samples = (name for name in names for _ in range(n))
    return (f"{name}-{unique}-{number:04d}" for number, name in enumerate(samples))


def client_rid(rid: str) -> str:
    """The client's own id in that of an attempt at one of its samples, see `_rids`."""
    return rid[: -len(_RID_END)]


_RID_END = f"-{'0' * 32}-0000-00"


def _is_rid(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_ID and value.isprintable()


def _nth_seed(seed: int, number: int) -> int:
    return (seed + number + 2**63) % 2**64 - 2**63


_SPLIT = {
    Endpoint.CHAT: _split_chat,
    Endpoint.COMPLETIONS: _split_completions,
    Endpoint.GENERATE: _split_generate,
}
