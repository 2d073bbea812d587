"""A cluster in one thread: Hugging Face models behind a stand-in gateway's routes.

It generates token by token, which is also the straightforward way to check the reference by.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.standin_gateway import Json, StandInGateway


class Models:
    """The base's and the decoders' checkpoints, which compute in `dtype`."""

    def __init__(self, folders: Mapping[str, Path], dtype: str = "float32") -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folders["base"])
        self._models = {name: _load(folder, dtype) for name, folder in folders.items()}

    @torch.no_grad()
    def logits(self, decoder: str, prompt: list[int], length: int, reader: str) -> torch.Tensor:
        """Logits [length, vocabulary] of greedy decoding; `reader` computes the prompt's KV."""
        ids, past, rows = torch.tensor([prompt]), None, []
        if len(prompt) > 1:
            past = self._models[reader](ids[:, :-1], use_cache=True).past_key_values
        token = ids[:, -1:]
        for _ in range(length):
            output = self._models[decoder](token, past_key_values=past, use_cache=True)
            past, row = output.past_key_values, output.logits[0, -1].float()
            token = row.argmax()[None, None]
            rows.append(row)
        return torch.stack(rows)


def _load(folder: Path, dtype: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


class ModelGateway(StandInGateway):
    """Serves decoders `names`; `own_kv` is the mistake that verify is there to find."""

    def __init__(self, models: Models, names: tuple[str, ...], own_kv: bool = False) -> None:
        super().__init__(names)
        self._served, self._own_kv = models, own_kv
        self._one_at_a_time = threading.Lock()

    def generate(self, decoder: str, body: Json) -> Json:
        length = body["sampling_params"]["max_new_tokens"]
        tokens, logprob = self._greedy(decoder, body["input_ids"], length)
        meta = {"output_token_logprobs": [[logprob, tokens[0], None]]}
        return {"output_ids": tokens, "meta_info": meta}

    def chat(self, body: Json) -> Json:
        prompt = self._served.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        tokens, logprob = self._greedy(body["model"], prompt, body["max_tokens"])
        choice = {
            "prompt_token_ids": prompt,
            "response_token_ids": tokens,
            "logprobs": {"content": [{"logprob": logprob}]},
        }
        return {"choices": [choice]}

    def _greedy(self, decoder: str, prompt: list[int], length: int) -> tuple[list[int], float]:
        reader = decoder if self._own_kv else "base"
        with self._one_at_a_time:
            logits = self._served.logits(decoder, prompt, length, reader)
        return logits.argmax(-1).tolist(), logits[0].log_softmax(-1).max().item()
