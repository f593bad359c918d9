"""Annotation files of the real data sets' size: time and memory of our readers, against json.load of the same file.

    python bench/annotations.py [--share 1.0] [--folder FOLDER]

The files are those of ezigen/mini/world/full_size.py. Each measurement runs in a process of its own, so that its peak
memory is its own. The readers also rank objects and encode units; json.load only parses. Planning does all that comes
before the first shard: it reads, sorts the units on the disk, stores them, and chooses 100,000 pairs of each source.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from ezigen.config import CocoSelection, PairConfig, PairInputs, VideoSelection
from ezigen.mini.world.full_size import COCO_INSTANCES, INSTANCES, META, write_coco, write_instances, write_meta
from tasks.datasets.coco import CocoReader
from tasks.datasets.youtube_vis import YoutubeVisReader
from tasks.pairs import plan_pairs
from tasks.storage import OutputFolder

MAX_GIB = 1.5
# json.load needs up to twelve times the file for so many small numbers.
BASELINE_MEMORY_PER_BYTE = 12


def read_coco(folder: Path) -> int:
    """Every unit once, as planning does; returns how many candidates there are."""
    return sum(unit.num_candidates for unit in CocoReader(str(folder)).read(CocoSelection(), Counter()))


def read_videos(folder: Path) -> int:
    """Every unit once; returns how many candidates there are."""
    return sum(unit.num_candidates for unit in YoutubeVisReader(str(folder)).read(VideoSelection(), Counter()))


def plan(folder: Path, layout: str) -> int:
    """All of planning, with COCO and the videos of one layout; returns how many candidates there are."""
    with tempfile.TemporaryDirectory(prefix="ezigen-bench-") as output:
        inputs = PairInputs(
            output_uri=output, coco_uri=str(folder / "coco"), youtube_vis_uri=str(folder / layout), if_busy="refuse"
        )
        planned = plan_pairs(inputs, PairConfig(), OutputFolder(output))
    return sum(source.candidates for source in planned.sources.values())


def parse(path: Path) -> int:
    """json.load; returns how many annotations there are."""
    with path.open() as file:
        return len(json.load(file)["annotations"])


MEASUREMENTS: dict[str, Callable[[Path], int]] = {
    "coco": read_coco,
    "youtube_vis": read_videos,
    "youtube_vis_palettes": read_videos,
    "plan": lambda folder: plan(folder, "youtube_vis"),
    "plan of palettes": lambda folder: plan(folder, "youtube_vis_palettes"),
    "json.load": parse,
}


@dataclass(frozen=True)
class Figures:
    """What one measurement came to."""

    seconds: float
    peak_gib: float
    value: int

    def __str__(self) -> str:
        return f"{self.seconds:7.2f} s   peak {self.peak_gib:5.2f} GiB   {self.value:>12,}"


def measure(name: str, path: Path) -> Figures:
    """A measurement's figures, taken in a process of its own."""
    command = [sys.executable, __file__, "--measure", name, str(path)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Figures(**json.loads(answer.splitlines()[-1]))


def _measure_here(name: str, path: str) -> None:
    started = time.perf_counter()
    value = MEASUREMENTS[name](Path(path))
    seconds = time.perf_counter() - started
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "peak_gib": peak_gib, "value": value}))


def _compare(name: str, folder: Path, file: str) -> None:
    size = (folder / file).stat().st_size
    print(f"{file}: {size / 2**20:,.0f} MiB")
    ours = measure(name, folder)
    print(f"  our reader   {ours} candidates; {_verdict(ours)}", flush=True)
    if psutil.virtual_memory().available < size * BASELINE_MEMORY_PER_BYTE:
        print("  json.load    left out: this machine has too little free memory for it")
        return
    baseline = measure("json.load", folder / file)
    print(f"  json.load    {baseline} annotations")
    print(f"  {baseline.seconds / ours.seconds:.1f}x as fast, {baseline.peak_gib / ours.peak_gib:.1f}x less memory")


def _verdict(figures: Figures) -> str:
    return f"wanted: at most {MAX_GIB} GiB, {'reached' if figures.peak_gib <= MAX_GIB else 'NOT reached'}"


def main() -> None:
    """Writes the files into a temporary folder, or the one named, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="share of the real size (default: all of it)")
    parser.add_argument("--folder", type=Path, default=None, help="keep the files there (default: a temporary folder)")
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        _measure_here(*options.measure)
        return
    with tempfile.TemporaryDirectory(prefix="ezigen-bench-") as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "coco").exists():
            write_coco(folder / "coco", options.share)
            write_instances(folder / "youtube_vis", options.share)
            write_meta(folder / "youtube_vis_palettes", options.share)
        _compare("coco", folder / "coco", COCO_INSTANCES)
        _compare("youtube_vis", folder / "youtube_vis", INSTANCES)
        _compare("youtube_vis_palettes", folder / "youtube_vis_palettes", META)
        for name in ("plan", "plan of palettes"):
            figures = measure(name, folder)
            print(f"{name:17s} {figures} candidates; {_verdict(figures)}", flush=True)


if __name__ == "__main__":
    main()
