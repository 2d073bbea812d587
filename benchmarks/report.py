"""Where benchmarks write: `out/`, which git ignores, and with `--publish` the tracked reference.

A run with `--quick` is kept apart, as `out/NAME-quick.json`: it replaces neither the reference nor
what a whole run has measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ps_sglang.errors import PsSglangError, UsageError
from ps_sglang.progress import OnProgress
from ps_sglang.training.machine import environment

REPOSITORY: Final = Path(__file__).parents[1]
OUT: Final = REPOSITORY / "out"
REFERENCE: Final = REPOSITORY / "benchmarks" / "results"


def parser(name: str, doc: str | None, quick: str) -> argparse.ArgumentParser:
    """The command line of `python -m benchmarks.NAME`; `quick` says what that option does."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = made.add_mutually_exclusive_group()
    group.add_argument("--quick", action="store_true", help=f"{quick}; never the reference")
    group.add_argument(
        "--publish", action="store_true", help="write the reference in benchmarks/results, too"
    )
    return made


def run(name: str, work: Callable[[], int]) -> int:
    """The exit status of a benchmark: what goes wrong is one line, what is refused status 2."""
    try:
        return work()
    except PsSglangError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return 130


def timed() -> OnProgress:
    """Prints lines with the seconds since this call."""
    began = time.monotonic()
    return lambda line: print(f"{time.monotonic() - began:6.0f} s  {line}", flush=True)


def count(text: str) -> int:
    """A number of repeats on a command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum of repeats."""
    return {
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
        "repeats": len(values),
    }


def save(
    name: str,
    figures: Mapping[str, Any],
    *,
    quick: bool = False,
    publish: bool = False,
    summary: Mapping[str, Any] | None = None,
) -> None:
    """Write `NAME.json` where it belongs, with the machine it was measured on; prints the paths.

    The reference keeps `summary` of the figures, if there is one.
    """
    taken = {"environment": environment()}
    write(OUT / f"{name}{'-quick' if quick else ''}.json", to_json({**taken, **figures}))
    if publish:
        write(REFERENCE / f"{name}.json", to_json({**taken, **(summary or figures)}))


def write(path: Path, content: str) -> None:
    """Write a file of results and print its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    print(f"saved {path}")


def saved(path: Path, what: str, command: str) -> Any:
    """What an earlier run saved as JSON.

    Raises UsageError if it is missing, naming the `command` that makes it, or has no `what`.
    """
    if not path.exists():
        raise UsageError(f"{path} is missing; this makes it: {command}")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} has no {what}: {error}") from error


def to_json(value: Any, indent: str = "") -> str:
    """JSON that people can read: what holds nothing but plain values takes one line."""
    deeper = indent + "  "
    inner = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping | list) or not any(
        isinstance(child, Mapping | list) for child in inner
    ):
        return json.dumps(value) + ("" if indent else "\n")
    if isinstance(value, Mapping):
        start, end = "{}"
        lines = [f"{json.dumps(key)}: {to_json(child, deeper)}" for key, child in value.items()]
    else:
        start, end = "[]"
        lines = [to_json(child, deeper) for child in value]
    body = ",\n".join(f"{deeper}{line}" for line in lines)
    return f"{start}\n{body}\n{indent}{end}" + ("" if indent else "\n")
