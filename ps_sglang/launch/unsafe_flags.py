"""SGLang's flags that run what others send, and those that run code which a model brings.

The first are refused unless the user insists with `--allow-unsafe`; the second are told of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from ps_sglang.errors import UsageError
from ps_sglang.launch import flags

_PORT: Final = "it opens a port that asks for no key"
_PEER: Final = "it takes weights that another host sends, which nobody compares with the base"

UNSAFE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "--enable-custom-logit-processor": "it runs Python code that a request brings",
        "--trust-request-chat-template": "it renders templates that a request brings",
        "--enable-multimodal": "it fetches URLs and opens files that a request names",
        "--tool-server": "it has tools run that a model calls",
        "--grpc-port": _PORT,
        "--grpc-mode": _PORT,
        "--smg-grpc-mode": _PORT,
        "--smg-http-sidecar-port": _PORT,
        "--sidecar": "it runs another program beside the worker, with a port of its own",
        "--engine-info-bootstrap-port": _PORT,
        "--remote-instance-weight-loader-start-seed-via-transfer-engine": (
            "it lets other hosts read the worker's weights"
        ),
        "--remote-instance-weight-loader-seed-instance-ip": _PEER,
        "--modelexpress-config": _PEER,
        "--checkpoint-engine-wait-weights-before-ready": _PEER,
    }
)
"""Each with the reason why it is refused."""
_UNSAFE_FORMATS: Final = frozenset({"remote", "remote_instance"})

RUNS_CODE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "--trust-remote-code": "Python files in the models' folders run in the workers",
        "--custom-weight-loader": "functions that it names run in the workers",
        "--forward-hooks": "functions that it names run in the workers",
    }
)
"""What each has run; whoever gives it has chosen that code."""


def refuse_unsafe(words: Sequence[str], source: str) -> None:
    """Refuse flags that run what others send; raises UsageError, which names the flag and why."""
    for name, group in flags.groups(words):
        reason = UNSAFE.get(name)
        if name == "--load-format" and flags.value_of(group, name) in _UNSAFE_FORMATS:
            reason = _PEER
        if reason is not None:
            raise UsageError(
                f"{source}: {name} is refused, as {reason}; --allow-unsafe admits it, and then "
                "only admins may make use of it"
            )


def code_warnings(command_lines: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Each flag that runs code of others, and on which workers; their words come by name."""
    for flag, effect in {**RUNS_CODE, **UNSAFE}.items():
        workers = [
            name
            for name, words in command_lines.items()
            if any(flag == given for given, _ in flags.groups(words))
        ]
        if workers:
            yield f"{flag} on {', '.join(workers)}: {effect}"
