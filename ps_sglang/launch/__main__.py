"""`ps-sglang launch`: start a cluster, serve until Ctrl-C, stop it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ps_sglang.launch.args import parse_args
from ps_sglang.launch.serve import Speaker, exit_status, serve_plan


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: see `serve.STATUSES`."""

    def launch(say: Speaker) -> None:
        spec = parse_args(sys.argv[1:] if argv is None else argv)
        if spec.on == "ray":
            from ps_sglang.launch.ray.serve import serve_on_ray

            serve_on_ray(spec, say)
            return
        from ps_sglang.launch.prepare import prepare

        serve_plan(prepare(spec), say)

    return exit_status(launch)


if __name__ == "__main__":
    sys.exit(main())
