"""The backend that an SGLang program runs on to have every decoder of a cluster at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sglang.lang.backend.base_backend import BaseBackend
from sglang.lang.choices import ChoicesDecision
from sglang.lang.interpreter import StreamExecutor
from sglang.lang.ir import SglSamplingParams
from sglang.utils import http_request

from ps_sglang.frontend.address import unwrap
from ps_sglang.frontend.chat_template import chat_template_of, named_chat_template
from ps_sglang.frontend.endpoint import DecoderEndpoint


class PrefillShareBackend(BaseBackend):  # type: ignore[misc]  # SGLang is not typed
    """All decoders behind the gateway at `url`.

    What `by(name, ...)` addresses goes to decoder `name`, everything else to `decoder`, which
    defaults to the first one served. Roles are laid out by the models' own chat template, read
    from their tokenizer's folder; where this machine does not have that, give `tokenizer` (a
    folder or hub id) or the `chat_template_name` of a template registered in SGLang.

    A backend holds no state of a program and serves any number at once.

    Raises RuntimeError or URLError if no gateway answers at `url`, ValueError if `decoder` is not
    served, and ChatTemplateError if the chat template cannot be found or has no fixed prefixes.
    """

    def __init__(
        self,
        url: str,
        decoder: str | None = None,
        *,
        api_key: str | None = None,
        tokenizer: str | None = None,
        chat_template_name: str | None = None,
    ) -> None:
        super().__init__()
        self._url = url.rstrip("/")
        self._api_key = api_key
        # The endpoints' own lookup of a template by model name is not used.
        self._endpoints = {
            name: DecoderEndpoint(f"{self._url}/models/{name}", api_key=api_key)
            for name in self._served()
        }
        self.decoder = next(iter(self._endpoints)) if decoder is None else decoder
        default = self._endpoint(self.decoder)
        self.chat_template = (
            named_chat_template(chat_template_name)
            if chat_template_name is not None
            else chat_template_of(tokenizer or default.model_info["tokenizer_path"])
        )

    @property
    def decoders(self) -> tuple[str, ...]:
        """The names that `by()` may address."""
        return tuple(self._endpoints)

    def get_model_name(self) -> str:
        """The name of the default decoder."""
        return self.decoder

    def flush_cache(self) -> None:
        """Empty the caches of all workers."""
        self._call("/flush_cache", method="POST")

    def get_server_info(self) -> Any:
        """The server info of the default decoder's worker."""
        return self._endpoint(self.decoder).get_server_info()

    def cache_prefix(self, prefix_str: str) -> None:
        """Have the base prefill a text, for every decoder."""
        self._endpoint(self.decoder).cache_prefix(prefix_str)

    def commit_lazy_operations(self, s: StreamExecutor) -> None:
        """Have the base prefill the text so far, for every decoder."""
        self._endpoint(self.decoder).commit_lazy_operations(s)

    def generate(self, s: StreamExecutor, sampling_params: SglSamplingParams) -> tuple[Any, Any]:
        """Text and meta info from the decoder that the expression is addressed to."""
        endpoint = self._addressed(sampling_params)
        answer: tuple[Any, Any] = endpoint.generate(s, sampling_params)
        return answer

    def generate_stream(
        self, s: StreamExecutor, sampling_params: SglSamplingParams
    ) -> Iterator[tuple[str, Any]]:
        """As `generate`, in pieces as they come."""
        endpoint = self._addressed(sampling_params)
        yield from endpoint.generate_stream(s, sampling_params)

    def select(
        self,
        s: StreamExecutor,
        choices: Sequence[str],
        temperature: float,
        choices_method: Any = None,
    ) -> ChoicesDecision:
        """The choice of the decoder that the expression is addressed to."""
        decoder, method = unwrap(choices_method)
        return self._endpoint(decoder or self.decoder).select(s, choices, temperature, method)

    def _addressed(self, sampling_params: SglSamplingParams) -> DecoderEndpoint:
        """The endpoint of a `gen`, whose parameters are the caller's own copy."""
        decoder, sampling_params.dtype = unwrap(sampling_params.dtype)
        return self._endpoint(decoder or self.decoder)

    def _endpoint(self, decoder: str) -> DecoderEndpoint:
        if decoder not in self._endpoints:
            raise ValueError(
                f"decoder {decoder!r} is not served at {self._url}; "
                f"served: {', '.join(self._endpoints)}"
            )
        return self._endpoints[decoder]

    def _served(self) -> list[str]:
        return [model["id"] for model in self._call("/v1/models").json()["data"]]

    def _call(self, path: str, method: str = "GET") -> Any:
        answer = http_request(self._url + path, api_key=self._api_key, method=method)
        if answer.status_code != 200:
            raise RuntimeError(f"{self._url}{path} answers {answer.status_code}: {answer.text}")
        return answer
