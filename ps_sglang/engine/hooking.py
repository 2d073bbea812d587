"""How a function declares that it hooks one of SGLang's; it knows nothing of SGLang itself.

The decorator stands beside the hook function, with its target and the target's parameters:
`hooks.py` collects, checks and installs what is declared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
Kind = Literal["before", "around", "after", "replace"]


@dataclass(frozen=True)
class Hook:
    """One hooked function of SGLang.

    `target` is its dotted name, as SGLang's `HookRegistry` takes it. `function` is the hook, or the
    class that replaces a class. `parameters` are the names of the target's parameters that the hook
    was written for.
    """

    target: str
    kind: Kind
    function: Callable[..., Any]
    parameters: tuple[str, ...]

    @property
    def reason(self) -> str:
        """Why it is hooked: the first sentence of the hook function's docstring."""
        first = (self.function.__doc__ or "").strip().partition("\n\n")[0]
        return " ".join(first.partition(": ")[2].split()) or " ".join(first.split())


declared: list[Hook] = []


def around(target: str, *parameters: str) -> Callable[[F], F]:
    """The function is called in place of the target, which it gets as its first argument.

    `target` is relative to `sglang.srt` unless it begins with `sglang.`.
    """
    return _declare("around", target, parameters)


def before(target: str, *parameters: str) -> Callable[[F], F]:
    """The function is called before the target, with the target's arguments."""
    return _declare("before", target, parameters)


def after(target: str, *parameters: str) -> Callable[[F], F]:
    """The function is called after the target, with its result as the first argument."""
    return _declare("after", target, parameters)


def replace(target: str, *parameters: str) -> Callable[[F], F]:
    """The function, or class, takes the place of the target."""
    return _declare("replace", target, parameters)


def _declare(kind: Kind, target: str, parameters: tuple[str, ...]) -> Callable[[F], F]:
    name = target if target.startswith("sglang.") else f"sglang.srt.{target}"

    def decorate(function: F) -> F:
        declared.append(Hook(name, kind, function, parameters))
        return function

    return decorate
