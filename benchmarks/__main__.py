"""`make bench`: runs every benchmark, or those named, and prints one table. `--write` also keeps it, dated."""

import argparse
import importlib
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.report import environment, markdown

BENCHMARKS = ("apiserver", "jobs")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", default=BENCHMARKS, metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument("--write", action="store_true", help="write the table to benchmarks/<date>.md")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]}; choose from {', '.join(BENCHMARKS)}")
    figures = []
    for name in options.names:
        print(f"measuring {name} ...", flush=True)
        figures += importlib.import_module(f"benchmarks.{name}").measure()
    text = f"{environment()}\n\n{markdown(figures)}\n"
    print(f"\n{text}")
    if options.write:
        path = Path(__file__).with_name(f"{datetime.now(UTC):%Y-%m-%d}.md")
        path.write_text(text)
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
