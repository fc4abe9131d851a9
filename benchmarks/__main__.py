"""`make bench`: runs every benchmark, or those named, and prints one table. `--write` also keeps it, dated."""

import argparse
import importlib
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.report import environment, markdown, readable

BENCHMARKS: dict[str, tuple[str, ...]] = {
    "apiserver": (),
    "jobs": (),
    "checkpoints": ("gb", "folder"),
    "recovery": ("kills",),
    "serving": (),
    "rollouts": ("requests",),
    "loop_overhead": ("turns",),
    "convergence": ("decoder_steps",),
    "flops": (),
    "machinery": (),
    "verdicts": ("rounds", "repetitions"),
}
"""Name of each benchmark, and which of the options it takes."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--gb", type=float, default=1.0, help="checkpoints: size of the state, 10^9 bytes (default 1)")
    parser.add_argument("--folder", type=Path, help="checkpoints: where to write (default: the system's temporary one)")
    parser.add_argument("--kills", type=int, default=10, help="recovery: processes killed per framework (default 10)")
    parser.add_argument("--requests", type=int, default=20_000, help="rollouts: of each change (default 20,000)")
    parser.add_argument("--turns", type=int, default=10, help="loop_overhead: of loop and bare step (default 10)")
    parser.add_argument("--decoder-steps", type=int, default=600, help="convergence: of the decoder (default 600)")
    parser.add_argument("--rounds", type=int, default=20, help="verdicts: of each kind (default 20)")
    parser.add_argument("--repetitions", type=int, default=10, help="verdicts: runs on each side (default 10)")
    parser.add_argument("--write", action="store_true", help="write the table to benchmarks/<date>.md")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]}; choose from {', '.join(BENCHMARKS)}")
    figures = []
    for name in options.names or BENCHMARKS:
        print(f"measuring {name} ...", flush=True)
        chosen = {option: getattr(options, option) for option in BENCHMARKS[name]}
        for figure in importlib.import_module(f"benchmarks.{name}").measure(**chosen):
            print(f"  {figure.name}: {readable(figure.value)} {figure.unit}", flush=True)  # what comes next may fail
            figures.append(figure)
    text = f"{environment()}\n\n{markdown(figures)}\n"
    print(f"\n{text}")
    if options.write:
        path = Path(__file__).with_name(f"{datetime.now(UTC):%Y-%m-%d}.md")
        path.write_text(text)
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
