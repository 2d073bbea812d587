"""`ps-sglang launch`, which forgets a death after some seconds in place of ten minutes.

    python -m benchmarks.faults.launcher SECONDS ARGUMENTS...

The suite kills a process again and again. Each time it is to be restarted as one that has died for
the first time, and not after the back-off of one that keeps dying.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ps_sglang.launch import restarts
from ps_sglang.launch.__main__ import main as launch


def main(argv: Sequence[str]) -> int:
    """Exit status: the launcher's."""
    seconds, *arguments = argv
    vars(restarts)["WINDOW_S"] = float(seconds)
    return launch(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
