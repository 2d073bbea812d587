"""What stand-in engines are told and tell: their configuration, requests and totals."""

from __future__ import annotations

from typing import Final

import msgspec

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
GENERATE: Final = "/generate"


class Pace(msgspec.Struct, frozen=True):
    """Seconds that work takes. All 0: answers come at once."""

    prefill_token: float = 0.0
    moved_token: float = 0.0
    decode_token: float = 0.0


class EngineConfig(msgspec.Struct, frozen=True):
    """One engine. `decoder` is None for a prefill worker; `events`: publish KV events."""

    name: str
    tokenizer: str
    decoder: str | None = None
    page_size: int = 16
    pool_tokens: int = 1 << 20
    stream_tokens: int = 1
    pace: Pace = Pace()
    events: bool = True


class Message(msgspec.Struct):
    """A turn of a chat."""

    role: str
    content: str

    def __getitem__(self, name: str) -> str:
        return str(getattr(self, name))


class Sampling(msgspec.Struct):
    """The native API's `sampling_params`."""

    max_new_tokens: int = 16


class Body(msgspec.Struct):
    """What an engine reads of a request, on any route."""

    rid: str = ""
    model: str = ""
    messages: list[Message] = msgspec.field(default_factory=list)
    prompt: str | list[int] = ""
    text: str = ""
    input_ids: list[int] = msgspec.field(default_factory=list)
    stream: bool | None = False
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    sampling_params: Sampling = msgspec.field(default_factory=Sampling)
    cache_salt: str | None = None
    extra_key: str | None = None
    bootstrap_host: str = ""
    bootstrap_port: int = 0
    bootstrap_room: int = 0

    @property
    def salt(self) -> str:
        """The tenant's part of the key of all that is cached."""
        return (self.cache_salt or "") + (self.extra_key or "")

    @property
    def output_tokens(self) -> int:
        """How many tokens are wanted."""
        return self.max_completion_tokens or self.max_tokens or self.sampling_params.max_new_tokens


class Totals(msgspec.Struct):
    """What an engine has done since it was last asked to forget it."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    moved_tokens: int = 0
    evicted_tokens: int = 0
    busy_seconds: float = 0.0
