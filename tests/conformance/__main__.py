"""`python -m tests.conformance URL`: the bar of a release, on a running cluster."""

from __future__ import annotations

import argparse

from tests.conformance.drive import drive


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("url", help="a gateway, as http://localhost:8000")
    parser.add_argument("--requests", type=int, default=10_000, help="at least so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=int, default=8, help="tokens of an answer, at most")
    args = parser.parse_args()
    report = drive(args.url, args.requests, args.seed, args.longest)
    print(report)
    parser.exit(bool(report.faults))


if __name__ == "__main__":
    main()
