"""The table of faults: `python -m tests.faults [WORD ...] [--works WORK ...] [--times N] [--save FILE]`."""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.faults import FAULTS, Outcome, try_fault
from tests.faults.site import deploy, run_site
from tests.faults.works import WORKS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("words", nargs="*", help="only faults whose names hold one of them")
    parser.add_argument("--times", type=int, default=1, help="how often each is tried (1)")
    parser.add_argument("--save", type=Path, help="the outcomes as JSON")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS), help="kinds of runs (all)")
    options = parser.parse_args()
    chosen = [
        (fault, WORKS[name])
        for name in options.works
        for fault in FAULTS
        if name in fault.works and (not options.words or any(word in fault.name for word in options.words))
    ]
    outcomes: list[Outcome] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="ezigen-faults-") as folder, run_site(Path(folder)) as site:
        deploy(site.client, [WORKS[name] for name in options.works])
        for number in range(options.times):
            for fault, work in chosen:
                began = time.monotonic()
                try:
                    outcome = try_fault(site, fault, work)
                except Exception as error:  # noqa: BLE001 - the others are tried all the same
                    wrong.append(f"{work.name}, {fault.name}: {error!r}")
                    print(f"[{number + 1}] {work.name}, {fault.name}: WRONG: {error!r}", file=sys.stderr, flush=True)
                    continue
                finally:
                    site.proxy.always = None
                outcomes.append(outcome)
                print(f"[{number + 1}] {outcome}  {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
                if options.save:
                    options.save.write_text(json.dumps([dataclasses.asdict(one) for one in outcomes], indent=1))
    print_table(outcomes)
    for line in wrong:
        print(f"WRONG  {line}")
    harmed = any(one.lost or one.duplicated or one.damaged or one.left_over for one in outcomes)
    return 1 if wrong or harmed else 0


def print_table(outcomes: list[Outcome]) -> None:
    """One line per fault: sums over its tries, times as the longest."""
    print("| run | fault | tried | ended as | repeated | lost | duplicated | damaged | more after | complete after |")
    print("|---|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for work, name in dict.fromkeys((one.work, one.fault) for one in outcomes):
        tries = [one for one in outcomes if (one.work, one.fault) == (work, name)]
        ends = ", ".join(sorted({one.ended for one in tries}))
        sums = [sum(getattr(one, field) for one in tries) for field in ("repeats", "lost", "duplicated", "damaged")]
        recover, whole = (max(getattr(one, field) for one in tries) for field in ("recover_s", "whole_s"))
        cells = [work, name, str(len(tries)), ends, *map(str, sums), f"{recover:.1f} s", f"{whole:.1f} s"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
