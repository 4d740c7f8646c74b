"""Cut the power at every moment: `python -m tests.powerloss` looks for a crash image that breaks a promise.

Purpose: the long form of the power-loss tests, with any bounds, seeds and real filesystems.
Rule: it ends with a table of what was looked at and exits with 1 if a promise was broken; a violation is written to a
file, and the command that shows it again is printed.
Strategy: scenarios one after another, then every pair of deeds that meet, then (with `--real`) mounted filesystems that
are stopped as a power cut would; with `--minutes` all of it again under further seeds until the time is over.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import fields
from itertools import count

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # its siblings are imported as the tests import them

from power_explore import Explorer, Limits, Tally, replay
from power_meetings import PAIRS, explore_pair
from power_real import KINDS, Trial, lacks, try_filesystem
from power_scenarios import SCENARIOS, record

SEEDS_MAX = 1_000_000
COLUMNS = ("runs", "steps", "images", "distinct", "second", "compared", "holes", "store.json", "violations")


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(prog="python -m tests.powerloss", description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--scenario", action="append", help="only this one; may be repeated (see --list)")
    made.add_argument("--images-max", type=int, default=64, help="crash images a step, sampled where there are more")
    made.add_argument("--second-every", type=int, default=20, help="cut the power twice in every N-th image, 0: never")
    made.add_argument("--stride", type=int, default=1, help="of the meetings of a pair take every N-th")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--minutes", type=float, default=0.0, help="go on with further seeds for so long")
    made.add_argument("--real", default="", help=f"filesystems to mount and stop, or 'all': {','.join(KINDS)}")
    made.add_argument(
        "--cuts", type=int, default=10, help="moments at which each real filesystem is cut, three images each"
    )
    made.add_argument("--scratch", default="/dev/shm" if os.path.isdir("/dev/shm") else None, help="folder for images")
    made.add_argument("--list", action="store_true", help="name the scenarios and pairs, and end")
    made.add_argument("--replay", metavar="FILE", help="judge a saved violation again; its image stays in FILE.image")
    return made


def names() -> list[str]:
    """Return the names of all scenarios and pairs."""
    return [*SCENARIOS, *(f"{one}+{two}" for one, two in PAIRS)]


def explore(name: str, scratch: str, limits: Limits, stride: int) -> Tally:
    """Explore one scenario or pair."""
    base = os.path.join(scratch, "base")
    scenario = SCENARIOS.get(name)
    explorer = Explorer(name, scratch, limits, repair=scenario is not None and scenario.repair)
    if scenario is None:
        explore_pair(explorer, base, *name.split("+"), limits.seed, stride=stride)
    else:
        shutil.rmtree(base, ignore_errors=True)
        os.makedirs(base)
        recorder, first = record(scenario, base, limits.seed)
        explorer.explore(recorder, first=first)
    return explorer.tally


def seeds(first: int, minutes: float) -> Iterator[int]:
    """Yield the first seed, and further ones until the time is over."""
    end = time.monotonic() + minutes * 60
    for seed in count(first):
        yield seed
        if time.monotonic() >= end or seed - first >= SEEDS_MAX:
            return


def report(tally: Tally, limits: Limits) -> None:
    """Print the violations of one tally, and how to see each again."""
    for found in tally.violations:
        path = os.path.join(tempfile.gettempdir(), f"powerloss-{found.scenario}-{limits.seed}-{found.step}.found")
        found.save(path)
        print(f"VIOLATION {found.scenario} step {found.step} after {found.effect}\n  {found.message}")
        print(*(f"  {line}" for line in found.kept), sep="\n")
        print(f"  again: python -m tests.powerloss --replay {path}")
        options = f"--seed {limits.seed} --images-max {limits.images_max} --second-every {limits.second_every}"
        print(f"  whole: python -m tests.powerloss --scenario {found.scenario} {options}", flush=True)


def add(total: Tally, more: Tally) -> None:
    """Add one tally to another."""
    for counted in fields(Tally):
        setattr(total, counted.name, getattr(total, counted.name) + getattr(more, counted.name))


def row(name: str, tally: Tally) -> str:
    """Return a line of the table."""
    numbers = (tally.runs, tally.steps, tally.images, tally.distinct, tally.second, tally.compared, tally.holes)
    return f"{name:<22}" + "".join(f"{number:>11}" for number in (*numbers, tally.torn, len(tally.violations)))


def run_model(options: argparse.Namespace) -> int:
    """Explore the scenarios; print the table; return the number of violations."""
    tallies: dict[str, Tally] = {}
    scratch = tempfile.mkdtemp(prefix="powerloss-", dir=options.scratch)
    try:
        for seed in seeds(options.seed, options.minutes):
            limits = Limits(options.images_max, seed, options.second_every)
            for name in options.scenario or names():
                tally = explore(name, scratch, limits, options.stride)
                report(tally, limits)
                add(tallies.setdefault(name, Tally()), tally)
                print(
                    f"seed {seed} {name}: {tally.images} images, {tally.distinct} distinct", file=sys.stderr, flush=True
                )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{'scenario':<22}" + "".join(f"{column:>11}" for column in COLUMNS))
    total = Tally()
    for name, tally in tallies.items():
        print(row(name, tally))
        add(total, tally)
    print(row("all", total))
    return len(total.violations)


def run_real(options: argparse.Namespace) -> int:
    """Cut the power of real filesystems; print the table; return the number of images that broke a promise."""
    kinds = list(KINDS) if options.real == "all" else options.real.split(",")
    trials: list[Trial] = []
    for seed in seeds(options.seed, options.minutes):
        for name in kinds:
            reason = lacks(name)
            trial = (
                Trial(name, note=f"SKIPPED: {reason}")
                if reason
                else try_filesystem(name, options.cuts, seed, options.scratch)
            )
            trials.append(trial)
            print(f"seed {seed} {trial}", file=sys.stderr, flush=True)
            if trial.broken and not KINDS[name].known:
                print(f"VIOLATION {name}: {trial.note}")
                print(
                    f"  again: python -m tests.powerloss --real {name} --cuts {options.cuts} --seed {seed}", flush=True
                )
    print(f"{'filesystem':<26}{'images':>8}{'compared':>10}{'broken':>8}  note")
    for name in kinds:
        mine = [trial for trial in trials if trial.kind == name]
        images, compared = sum(trial.images for trial in mine), sum(trial.compared for trial in mine)
        broken = sum(trial.broken for trial in mine)
        note = f"known: {KINDS[name].known}" if broken and KINDS[name].known else mine[0].note
        print(f"{name:<26}{images:>8}{compared:>10}{broken:>8}  {note}")
    return sum(trial.broken for trial in trials if not KINDS[trial.kind].known)


def main() -> int:
    """Run the command."""
    options = parser().parse_args()
    if options.list:
        print(*names(), sep="\n")
        return 0
    if options.replay:
        wrong = replay(options.replay, options.replay + ".image")
        print(f"violation: {wrong}" if wrong else "no violation any more")
        return bool(wrong)
    wanted = set(options.real.split(",")) - {"", "all"} - KINDS.keys()
    unknown = set(options.scenario or ()) - set(names()) | wanted
    if unknown:
        print(f"no such scenario: {sorted(unknown)}; see --list", file=sys.stderr)
        return 2
    failed = run_real(options) if options.real else run_model(options)
    print("VIOLATED" if failed else "every promise held" + (", but for what is known" if options.real else ""))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
