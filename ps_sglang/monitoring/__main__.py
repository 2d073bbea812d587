"""`ps-sglang monitoring`: write the dashboard and the alerts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

from ps_sglang.errors import UsageError
from ps_sglang.parser import user_path
from ps_sglang.progress import progress

FILES: Final = {
    "dashboard.json": "a dashboard for Grafana: Dashboards, New, Import",
    "alerts.yaml": "alerts for Prometheus: under `rule_files:`",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files; raises UsageError if they cannot be written."""
    parser = argparse.ArgumentParser(
        prog="ps-sglang monitoring",
        description="Write a Grafana dashboard and Prometheus alerts for the gateway's /metrics.",
    )
    parser.add_argument(
        "folder", type=user_path, nargs="?", default=Path(), help="where to (default: here)"
    )
    folder: Path = parser.parse_args(argv).folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, purpose in FILES.items():
            (folder / name).write_bytes(files(__package__).joinpath(name).read_bytes())
            progress(f"{folder / name}: {purpose}")
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
