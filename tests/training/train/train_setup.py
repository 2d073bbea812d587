"""Small data and short runs on a tiny model."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ps_sglang.training.train.run import train
from ps_sglang.training.train.settings import TrainSettings
from ps_sglang.training.train.trainer import DecoderTrainer


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def conversations(count: int, seed: int) -> list[dict[str, Any]]:
    """Of one to three turns, answers of different lengths."""
    chance = random.Random(seed)

    def turn() -> list[dict[str, str]]:
        one, other = chance.randint(1, 99), chance.randint(1, 99)
        answer = f"The answer is {one + other}. " * chance.randint(1, 3)
        return [
            {"role": "user", "content": f"What is {one} and {other}?"},
            {"role": "assistant", "content": answer.strip()},
        ]

    def conversation() -> list[dict[str, str]]:
        return [message for _ in range(chance.randint(1, 3)) for message in turn()]

    return [{"messages": conversation()} for _ in range(count)]


# Renders all that the OpenAI format has for tools.
TOOL_TEMPLATE = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    '{% for c in m.tool_calls or [] %}<tool_call>{"name": "{{ c.function.name }}", '
    '"arguments": {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}<|im_end|>\n'
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tool_conversation() -> dict[str, Any]:
    """One call with arguments of all kinds, its result, and an answer."""
    arguments = {"city": "Paris", "days": 3, "deep": {"x": ["é <b>"], "y": True, "z": 1.5}}
    function = {"name": "weather", "arguments": arguments}
    properties = {
        "city": {"type": "string", "enum": ["Paris", "Rome"]},
        "days": {"type": "integer"},
    }
    parameters = {"type": "object", "properties": properties, "required": ["city"]}
    described = {"name": "weather", "description": "Look it up.", "parameters": parameters}
    call = {"id": "c1", "type": "function", "function": function}
    return {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Weather in Paris?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "cold: 21", "tool_call_id": "c1"},
            {"role": "assistant", "content": "It is 21."},
        ],
        "tools": [{"type": "function", "function": described}],
    }


class Run:
    """A run of `train` in `folder/out`; what it said is in `said`."""

    def __init__(self, folder: Path, base: Path, rows: int = 32) -> None:
        folder.mkdir(exist_ok=True)
        self.out = folder / "out"
        self.said: list[str] = []
        self.settings: dict[str, Any] = {
            "base": str(base),
            "data": str(write_rows(folder / "train.jsonl", conversations(rows, seed=1))),
            "out": self.out,
            "steps": 6,
            "batch_size": 4,
            "log_steps": 1,
            "warmup": 0.0,
            "learning_rate": 1e-3,
        }

    def train(self, **changes: Any) -> None:
        train(TrainSettings(**self.settings | changes), self.said.append)

    def log(self, key: str = "loss") -> dict[int, float]:
        """step -> value, of `training/log.jsonl`."""
        rows = map(json.loads, (self.out / "training" / "log.jsonl").read_text().splitlines())
        return {row["step"]: row[key] for row in rows if key in row}


@contextmanager
def stop_at(step: int) -> Iterator[None]:
    """As Ctrl-C does before that step."""
    whole = DecoderTrainer.training_step

    def stopping(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecoderTrainer, "training_step", stopping)
        yield
