"""Every error that ps_sglang raises, split by what the caller can do about it.

PsSglangError
├── UsageError                what the user gave is wrong: mend it and try again
│   ├── ModelNotFoundError        no checkpoint where the model specification points
│   ├── CheckpointError           a checkpoint folder is damaged or lacks a file
│   ├── ManifestError             a prefillshare.json cannot be read
│   ├── DataError                 training data with rows that cannot be used (all at once)
│   └── ContractError             decoders that do not fit the base (all differences at once)
├── TrainingError             a training run stopped; its last checkpoint is good
├── EvaluationError           an evaluation stopped; the answers it had are kept
├── MissingPackageError       an optional package is not installed: install it
└── LaunchError               a worker or the gateway did not come up: read its log
    └── ServingEndedError         ... or died, and is not restarted any more
"""

from __future__ import annotations


class PsSglangError(Exception):
    """Base of every error raised on purpose; its message is fit to print without a traceback."""


class UsageError(PsSglangError):
    """Something that the user gave is wrong; the same call cannot succeed unchanged."""


class ModelNotFoundError(UsageError):
    """A model specification does not lead to a checkpoint."""


class CheckpointError(UsageError):
    """A checkpoint folder lacks a file, or one of its files is damaged."""


class ManifestError(UsageError):
    """A `prefillshare.json` is unreadable, or has a field of the wrong type or schema."""


class DataError(UsageError):
    """Training data that cannot be read, or with rows that cannot be used."""


class ContractError(UsageError):
    """Decoders that cannot decode from the base's cache.

    `differences` holds one line per difference, over all decoders; the message lays them out.
    """

    def __init__(self, message: str, differences: tuple[str, ...]) -> None:
        super().__init__(message)
        self.differences = differences


class TrainingError(PsSglangError):
    """A training run cannot go on: a loss that is not finite, a checkpoint that cannot be saved.

    What was saved before is whole.
    """


class EvaluationError(PsSglangError):
    """An evaluation cannot go on: the cluster refuses a request, a file cannot be written.

    Answers and rows that were written before are whole.
    """


class MissingPackageError(PsSglangError):
    """An optional package is needed; the message says how to install it."""


class LaunchError(PsSglangError):
    """A worker or the gateway failed to start.

    `worker` is its name in the cluster and `log_tail` the last lines of its log.
    """

    def __init__(self, message: str, *, worker: str = "", log_tail: str = "") -> None:
        super().__init__(f"{message}\n{log_tail}" if log_tail else message)
        self.worker = worker
        self.log_tail = log_tail


class ServingEndedError(LaunchError):
    """What served has died, more often than it is restarted: nothing is left to serve."""
