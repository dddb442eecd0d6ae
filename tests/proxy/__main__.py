"""The proxy as a process of its own, for measurements: ``python -m tests.proxy HOST:PORT [--latency-s …]``.

Prints its URL and serves until its standard input ends. Each line of input is a command: ``counts`` prints a line of
JSON with what was asked and sent since the last one.
"""

from __future__ import annotations

import argparse
import json
import sys

from tests.proxy.faults import Fault, always
from tests.proxy.server import proxy


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.proxy")
    parser.add_argument("target", metavar="HOST:PORT")
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--bytes-per-s", type=float)
    arguments = parser.parse_args()
    host, _, port = arguments.target.rpartition(":")
    plan = always(Fault(latency_s=arguments.latency_s))
    with proxy((host, int(port)), plan=plan, bytes_per_s=arguments.bytes_per_s) as made:
        print(made.url, flush=True)
        for line in sys.stdin:
            if line.strip() == "counts":
                print(json.dumps({"asked": made.asked, "sent_bytes": made.sent_bytes}), flush=True)
                made.forget_counts()


if __name__ == "__main__":
    main()
