"""`python -m tests.torture`: faults and deaths in full, a table of what came of them; exit code 1 on any miss.

Every case has a seed of its own, so that one that is missed can be repeated: it is printed.
"""

import argparse
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from tests.torture import kills
from tests.torture.faults import FAULTS, SIGNED_FAULTS, Expected, Fault
from tests.torture.kills import Tally
from tests.torture.scenes import KINDS, LARGE_KINDS, SIGNED_KIND, Kind, clean, scratch, suffer

_LARGE_SHARE = 0.05
_SIGNED_SHARE = 0.1
_BATCH = 50


@dataclass
class Row:
    """All cases of one fault."""

    name: str
    expected: Counter[Expected] = field(default_factory=Counter)
    misses: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return sum(self.expected.values())


def fault_cases(count: int, seed: int) -> Iterator[tuple[str, Kind, Fault, int]]:
    """`count` cases: name of the row, store, fault, seed."""
    for number in range(count):
        share = number % 100 / 100
        case = seed * 1_000_003 + number
        if share < _LARGE_SHARE:
            fault, kind = FAULTS[number // 100 % len(FAULTS)], LARGE_KINDS[number % 3]
        elif share < _LARGE_SHARE + _SIGNED_SHARE:
            fault, kind = SIGNED_FAULTS[number % len(SIGNED_FAULTS)], SIGNED_KIND
        else:
            fault, kind = FAULTS[number % len(FAULTS)], KINDS[number % 3]
        yield (f"{fault.__name__}, signed" if kind.is_signed else fault.__name__), kind, fault, case


def run_faults(cases: list[tuple[str, Kind, Fault, int]]) -> list[Row]:
    """The outcome of each."""
    rows: dict[str, Row] = {}
    for name, kind, fault, seed in cases:
        expected, problem = suffer(kind, fault, seed)
        row = rows.setdefault(name, Row(name))
        row.expected[expected] += 1
        if problem:
            row.misses.append(f"{name}, {kind}, seed {seed}: {problem}")
    return list(rows.values())


def run_clean(seeds: list[int]) -> list[str]:
    """What was wrong with any of them."""
    return [f"clean, seed {seed}: {problem}" for seed in seeds if (problem := clean(seed))]


def kill_plan(points: int, seed: int) -> list[tuple[Callable[..., Tally], tuple[object, ...]]]:
    """Who dies how often: at least `points` deaths of writers in all, beside power cuts and retention's."""
    share = max(1, points // 8)
    plan: list[tuple[Callable[..., Tally], tuple[object, ...]]] = [
        (kills.every_operation_of_a_save, (world,)) for world in (1, 2, 3)
    ]
    plan += [(kills.two_writers, (world, 2 * share if world == 2 else share, seed + world)) for world in (1, 2, 3)]
    plan += [(kills.killed_processes, (world, share, seed, is_second)) for world in (1, 3) for is_second in (0, 1)]
    plan += [(kills.every_operation_under_a_power_cut, (world,)) for world in (1, 3)]
    return [*plan, (kills.every_operation_of_a_sweep, ())]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--faults", type=int, default=10_000, help="faults, and as many clean checkpoints")
    parser.add_argument("--kills", type=int, default=1_000, help="deaths of writers")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that its files are removed
    scratch()
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork")) as pool:
        deaths = [pool.submit(action, *arguments) for action, arguments in kill_plan(options.kills, options.seed)]
        cases = list(fault_cases(options.faults, options.seed))
        faults = [pool.submit(run_faults, cases[at : at + _BATCH]) for at in range(0, len(cases), _BATCH)]
        seeds = [options.seed * 1_000_003 + number for number in range(options.faults)]
        cleans = [pool.submit(run_clean, seeds[at : at + _BATCH]) for at in range(0, len(seeds), _BATCH)]
        tallies = [death.result() for death in deaths]
        rows = _merged([row for future in faults for row in future.result()])
        false_alarms = [problem for future in cleans for problem in future.result()]
    _print_faults(rows, len(seeds), false_alarms)
    _print_deaths(tallies)
    misses = [miss for each in (*rows, *tallies) for miss in each.misses] + false_alarms
    for miss in misses[:20]:
        print(f"MISS  {miss}", file=sys.stderr)
    print(f"\nseed {options.seed}, {time.monotonic() - started:.0f} s, {len(misses)} misses")
    return 1 if misses else 0


def _merged(parts: list[Row]) -> list[Row]:
    rows: dict[str, Row] = {}
    for part in parts:
        row = rows.setdefault(part.name, Row(part.name))
        row.expected.update(part.expected)
        row.misses += part.misses
    return sorted(rows.values(), key=lambda row: row.name)


def _print_faults(rows: list[Row], clean_cases: int, false_alarms: list[str]) -> None:
    print(f"{'fault':36} {'cases':>7} {'detected':>9} {'harmless':>9} {'missed':>7}")
    for row in rows:
        harmless = row.expected[Expected.IGNORED]
        missed = len(row.misses)
        detected = row.cases - harmless
        held = (detected - (missed if detected else 0), harmless - (0 if detected else missed))
        print(f"{row.name:36} {row.cases:7} {held[0]:9} {held[1]:9} {missed:7}")
    missed = sum(len(row.misses) for row in rows)
    print(f"{'all':36} {sum(row.cases for row in rows):7} {'':9} {'':9} {missed:7}")
    print(f"{'clean checkpoints':36} {clean_cases:7} {'':9} {clean_cases - len(false_alarms):9} {len(false_alarms):7}")


def _print_deaths(tallies: list[Tally]) -> None:
    print(f"\n{'death':66} {'points':>7} {'missed':>7}  read afterwards")
    for tally in tallies:
        read = ", ".join(f"{what} {count}" for what, count in tally.read.items())
        print(f"{tally.name:66} {tally.points:7} {len(tally.misses):7}  {read}")
    print(f"{'all':66} {sum(tally.points for tally in tallies):7} {sum(len(tally.misses) for tally in tallies):7}")


if __name__ == "__main__":
    raise SystemExit(main())
