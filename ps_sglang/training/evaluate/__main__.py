"""`ps-sglang evaluate`, `ps-sglang evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ps_sglang.errors import EvaluationError, PsSglangError
from ps_sglang.progress import progress
from ps_sglang.training.evaluate.args import parse_args

if TYPE_CHECKING:
    from ps_sglang.training.evaluate.results import Evaluation


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 evaluated, 1 stopped, 2 refused before any work, 3 served is not offline,
    130 Ctrl-C."""
    try:
        settings = parse_args(argv)
        # Imported late: torch and transformers take seconds, and `--help` needs neither.
        from ps_sglang.training.evaluate.run import evaluate

        return _show(evaluate(settings))
    except EvaluationError as error:
        progress(f"error: {error}")
        return 1
    except PsSglangError as error:
        progress(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        progress("stopped; what --answers and --out have got is kept")
        return 130


def _show(evaluation: Evaluation) -> int:
    for row in evaluation.rows:
        tail = f", tail {row.tail}" if row.tail else ""
        how = "served" if row.served else f"share {row.share:g}{tail}"
        print(
            f"{row.task}, {row.system}, {how}: {row.score:.1%} of {row.n} "
            f"(95 % interval {row.low:.1%} to {row.high:.1%})"
        )
    comparison = evaluation.comparison
    if comparison is None:
        return 0
    for difference in comparison.differing:
        print(difference)
    print(f"served = offline on {comparison.equal}/{comparison.n} items", flush=True)
    return 3 if comparison.differing else 0


if __name__ == "__main__":
    sys.exit(main())
