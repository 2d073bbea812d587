"""Made-up step costs of a simulated engine."""

from __future__ import annotations

from benchmarks.studies.simulate.hardware import Measured

SMALL = Measured(
    pool_tokens=60_000,
    prefill_step=1e-3,
    prefill_token=5e-5,
    decode_step=1e-2,
    decode_request=1e-4,
    move_fixed=1e-3,
    move_token=1e-6,
)
