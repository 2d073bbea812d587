"""`ps-sglang COMMAND`: one word for each command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Final

from ps_sglang import __version__
from ps_sglang.errors import PsSglangError
from ps_sglang.progress import progress

Command = Callable[[Sequence[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit status 2: the arguments or files are wrong, 130: Ctrl-C."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="ps-sglang",
        usage="ps-sglang COMMAND ...",
        description="PrefillShare for SGLang: one base prefill serves many decoders.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<11} {help_text}" for name, (_, help_text) in COMMANDS.items())
        + "\n\n`ps-sglang COMMAND --help` tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ps-sglang {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below")
    # Everything after the command is the command's own, its --help included.
    chosen = parser.parse_args(words[:1])
    command, _ = COMMANDS[chosen.command]
    try:
        return command(words[1:])
    except PsSglangError as error:
        progress(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        progress("stopped")
        return 130


def _launch(argv: Sequence[str]) -> int:
    from ps_sglang.launch.__main__ import main as launch

    return launch(argv)


def _worker(argv: Sequence[str]) -> int:
    from ps_sglang.launch.worker import main as worker

    return worker(argv)


def _manifest(argv: Sequence[str]) -> int:
    from ps_sglang.launch.kubernetes.__main__ import main as manifest

    return manifest(argv)


def _verify(argv: Sequence[str]) -> int:
    from ps_sglang.verify.__main__ import main as verify

    return verify(argv)


def _workers(argv: Sequence[str]) -> int:
    from ps_sglang.workers.__main__ import main as workers

    return workers(argv)


def _status(argv: Sequence[str]) -> int:
    from ps_sglang.status.__main__ import status

    return status(argv)


def _top(argv: Sequence[str]) -> int:
    from ps_sglang.status.__main__ import top

    return top(argv)


def _decoders(argv: Sequence[str]) -> int:
    from ps_sglang.decoders.__main__ import main as decoders

    return decoders(argv)


def _monitoring(argv: Sequence[str]) -> int:
    from ps_sglang.monitoring.__main__ import main as monitoring

    return monitoring(argv)


def _keys(argv: Sequence[str]) -> int:
    from ps_sglang.keys.__main__ import main as keys

    return keys(argv)


def _train(argv: Sequence[str]) -> int:
    from ps_sglang.training.train.__main__ import main as train

    return train(argv)


def _tasks(argv: Sequence[str]) -> int:
    from ps_sglang.training.tasks.__main__ import main as tasks

    return tasks(argv)


def _evaluate(argv: Sequence[str]) -> int:
    from ps_sglang.training.evaluate.__main__ import main as evaluate

    return evaluate(argv)


def _check(argv: Sequence[str]) -> int:
    """Resolve the models of a launch and compare them; start nothing."""
    from ps_sglang.launch.args import CHECK_DESCRIPTION, parse_args
    from ps_sglang.launch.command_lines import check_flags
    from ps_sglang.launch.prepare import check_models

    spec = parse_args(argv, "ps-sglang check", CHECK_DESCRIPTION)
    check_flags(spec)
    base, reports = check_models(spec)
    print(f"base {base.name}: {base.path}")
    for report in reports:
        print(f"decoder {report.name}: {report.path}: {report.description}")
    return 0


def _merge(argv: Sequence[str]) -> int:
    from ps_sglang.training.train.merge import main as merge

    return merge(argv)


def _models(argv: Sequence[str]) -> int:
    """List the built-in demo models: the name to give, and what it is."""
    argparse.ArgumentParser(prog="ps-sglang models", description=_models.__doc__).parse_args(argv)
    from ps_sglang.models.demo import DESCRIPTIONS

    width = max(map(len, DESCRIPTIONS))
    for name, description in DESCRIPTIONS.items():
        print(f"{name:<{width}}  {description}")
    return 0


COMMANDS: Final[dict[str, tuple[Command, str]]] = {
    "launch": (_launch, "start a cluster and serve until Ctrl-C"),
    "worker": (_worker, "start one worker of a running cluster, and look after it"),
    "manifest": (_manifest, "write a cluster's Kubernetes manifests, or a Helm chart"),
    "check": (_check, "compare decoders with a base; starts nothing"),
    "verify": (_verify, "compare a running cluster with the Hugging Face reference"),
    "status": (_status, "show the workers and decoders of a running cluster"),
    "top": (_top, "show them again and again, with rates"),
    "workers": (_workers, "list, add, drain, remove and swap the workers of a running cluster"),
    "decoders": (_decoders, "list, add, remove and replace the adapters of a running cluster"),
    "monitoring": (_monitoring, "write a Grafana dashboard and Prometheus alerts"),
    "keys": (_keys, "list, add and revoke the API keys of clients"),
    "tasks": (_tasks, "write the data of a task, to train on and to be scored by"),
    "train": (_train, "fine-tune a decoder that reads the base's cache"),
    "evaluate": (_evaluate, "score a decoder on a task at any share of the base's cache"),
    "merge": (_merge, "make a whole model of a LoRA adapter and its base"),
    "models": (_models, "list the built-in demo models"),
}

if __name__ == "__main__":
    sys.exit(main())
