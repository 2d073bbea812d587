"""`ps-sglang train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ps_sglang.errors import PsSglangError, TrainingError
from ps_sglang.extras import require_extra
from ps_sglang.progress import progress
from ps_sglang.training.train.args import parse_args


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 trained, 1 the run stopped, 2 refused before any work, 130 Ctrl-C."""
    try:
        settings = parse_args(argv)
        require_extra("train", "training")
        # Imported late: torch and transformers take seconds, and `--help` needs neither.
        from transformers.utils import logging

        from ps_sglang.training.train.run import train

        logging.disable_progress_bar()
        train(settings, progress)
    except TrainingError as error:
        progress(f"error: {error}")
        return 1
    except PsSglangError as error:
        progress(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        progress("stopped; the same command with --resume goes on from the last checkpoint")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
