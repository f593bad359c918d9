"""Building training pairs: pairs per core and second, two workers against one, and memory at two sizes.

    python bench/pairs.py [--pairs 512] [--factor 8] [--size 512]

Drawn scenes stand in for COCO and YouTube-VIS, as JPEG of 512 px. Each measurement runs in a process of its own, which
starts Ray, so that its peak memory is its own. Rates are those of the time in which all workers are there: in a run of
hours neither their start nor the last shards count.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lines import show

from ezigen.config import PairConfig, PairInputs, RayConfig
from ezigen.mini.world.coco import write_coco
from ezigen.mini.world.compose import Composer
from ezigen.mini.world.products import make_variants, select_products
from ezigen.mini.world.youtube_vis import write_instances
from tasks.datasets.drawing import PictureLimits
from tasks.pairs import plan_pairs
from tasks.pairs.build import PairWork
from tasks.pairs.card import write_card
from tasks.pairs.sources import open_data_sets
from tasks.sharding import ShardReport, run_shards
from tasks.storage import OutputFolder

SIDE_PX = 512
NUM_PICTURES, NUM_VIDEOS, NUM_FRAMES = 32, 3, 10
PAIRS_PER_SHARD = 64
MIN_SPEEDUP = 1.8


class MeasuredWork(PairWork):
    """Says how much time of a core a shard took, and how much memory its process has ever used."""

    def make(self, shard: str) -> ShardReport:
        """The shard, with two more counts."""
        started = time.process_time()
        report = super().make(shard)
        own = {
            "cpu_us": round((time.process_time() - started) * 1e6),
            "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }
        return dataclasses.replace(report, counts={**report.counts, **own})


def write_data_sets(folder: Path, num_pairs: int) -> None:
    """Data sets with candidates for so many pairs: a few drawn scenes under many names."""
    variants = make_variants(select_products(held_out=False)[:16], side=SIDE_PX, shifts=(0,))
    composer = Composer(variants, SIDE_PX, num_backgrounds=2, seed=0)
    write_coco(composer, folder / "coco", NUM_PICTURES, seed=0)
    write_instances(composer, folder / "videos", NUM_VIDEOS, NUM_FRAMES, seed=0)
    _repeat_coco(folder / "coco", max(1, num_pairs // NUM_PICTURES))
    _repeat_videos(folder / "videos", max(1, num_pairs // (20 * NUM_VIDEOS)))


def _repeat_coco(folder: Path, times: int) -> None:
    for kind in ("instances", "captions"):
        path = folder / f"annotations/{kind}_train2014.json"
        values = json.loads(path.read_text())
        for part in ("images", "annotations"):
            values[part] = [_renumbered(row, copy) for copy in range(times) for row in values[part]]
        path.write_text(json.dumps(values))
    for picture in sorted((folder / "train2014").iterdir()):
        for copy in range(1, times):
            os.link(picture, picture.with_name(f"{copy}-{picture.name}"))


def _renumbered(row: dict[str, Any], copy: int) -> dict[str, Any]:
    changed = {name: row[name] + 100_000 * copy for name in ("id", "image_id", "video_id") if name in row}
    if "file_name" in row and copy:
        changed["file_name"] = f"{copy}-{row['file_name']}"
    if "file_names" in row and copy:
        changed["file_names"] = [f"{copy}-{name}" for name in row["file_names"]]
    return {**row, **changed}


def _repeat_videos(folder: Path, times: int) -> None:
    path = folder / "instances.json"
    values = json.loads(path.read_text())
    for part in ("videos", "annotations"):
        values[part] = [_renumbered(row, copy) for copy in range(times) for row in values[part]]
    path.write_text(json.dumps(values))
    for video in sorted((folder / "JPEGImages").iterdir()):
        for copy in range(1, times):
            (video.parent / f"{copy}-{video.name}").mkdir()
            for frame in video.iterdir():
                os.link(frame, video.parent / f"{copy}-{video.name}" / frame.name)


@dataclass(frozen=True)
class Figures:
    """One measurement."""

    pairs: int
    rate: float
    """Pairs per second of all workers together."""
    busy: float
    """Share of the time in which workers had a shard."""
    cpu_s: float
    """Seconds of a core that all shards took."""
    num_workers: int
    plan_s: float
    card_s: float
    driver_mib: float
    worker_mib: float
    pair_kb: float

    @property
    def per_core(self) -> float:
        """Pairs per second of a core that nobody else uses."""
        return self.pairs / self.cpu_s

    @property
    def undisturbed_rate(self) -> float:
        """The rate, had each worker had a core of its own."""
        return self.num_workers * self.busy * self.per_core

    def __str__(self) -> str:
        return f"{self.rate:6.1f} pairs/s, {self.per_core:5.1f} per core and second, busy {self.busy:.0%}"


def build(data: Path, output: Path, num_pairs: int, num_workers: int, size_px: int) -> Figures:
    """Plans and builds in this process, with Ray; every report is looked at."""
    inputs = PairInputs(
        output_uri=str(output),
        coco_uri=str(data / "coco"),
        youtube_vis_uri=str(data / "videos"),
        num_coco_pairs=num_pairs // 2,
        num_youtube_vis_pairs=num_pairs - num_pairs // 2,
    )
    config = PairConfig(size_px=size_px, pairs_per_shard=PAIRS_PER_SHARD)
    folder, started = OutputFolder(str(output)), time.perf_counter()
    plan = plan_pairs(inputs, config, folder)
    plan_s = time.perf_counter() - started
    locations = {one.source: one.reader.locations for one in open_data_sets(inputs)}
    work = MeasuredWork(folder, plan.identity, config, PictureLimits(), locations)
    ended: list[tuple[float, ShardReport]] = []
    run_shards(
        work,
        plan.to_do,
        cluster=RayConfig(num_workers=num_workers),
        on_report=lambda report: ended.append((time.perf_counter(), report)),
    )
    card_started = time.perf_counter()
    write_card(folder)
    reports = [report for _, report in ended]
    pairs = sum(report.rows for report in reports)
    rate, busy = _rate(ended, num_workers)
    return Figures(
        pairs=pairs,
        rate=rate,
        busy=busy,
        cpu_s=sum(report.counts["cpu_us"] for report in reports) / 1e6,
        num_workers=num_workers,
        plan_s=plan_s,
        card_s=time.perf_counter() - card_started,
        driver_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        worker_mib=max(report.counts["peak_kib"] for report in reports) / 2**10,
        pair_kb=sum(stored.num_bytes for report in reports for stored in report.files) / max(pairs, 1) / 1e3,
    )


def _rate(ended: list[tuple[float, ShardReport]], num_workers: int) -> tuple[float, float]:
    """Pairs per second, and the share of their time in which workers had a shard, while all of them were there."""
    spans: dict[str, list[tuple[float, float, int]]] = {}
    for end, report in ended:
        spans.setdefault(report.worker, []).append((end - report.seconds, end, report.rows))
    if len(spans) != num_workers:
        raise RuntimeError(f"{len(spans)} of {num_workers} workers had a shard; ask for more pairs (--pairs)")
    start = max(min(begin for begin, _, _ in own) for own in spans.values())
    stop = min(max(end for _, end, _ in own) for own in spans.values())
    pairs = held_s = 0.0
    for begin, end, rows in (span for own in spans.values() for span in own):
        inside_s = max(0.0, min(end, stop) - max(begin, start))
        pairs += rows * inside_s / (end - begin)
        held_s += inside_s
    return pairs / (stop - start), min(1.0, held_s / (num_workers * (stop - start)))


def measure(data: Path, output: Path, num_pairs: int, num_workers: int, size_px: int) -> Figures:
    """`build` in a process of its own."""
    numbers = [str(number) for number in (num_pairs, num_workers, size_px)]
    command = [sys.executable, __file__, "--measure", str(data), str(output), *numbers]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Figures(**json.loads(answer.splitlines()[-1]))


def compare(folder: Path, num_pairs: int, factor: int, size_px: int, repeats: int) -> None:
    """Prints everything."""
    data = folder / "data"
    data.mkdir()
    write_data_sets(data, num_pairs * factor)
    print(f"{num_pairs:,} pairs of {size_px} px, half of pictures and half of videos of {SIDE_PX} px", flush=True)
    found: dict[int, list[Figures]] = {1: [], 2: []}
    for repeat in range(repeats):
        for num_workers, results in found.items():  # in turn, so that a busy neighbour disturbs both
            results.append(measure(data, folder / f"out-{num_workers}-{repeat}", num_pairs, num_workers, size_px))
            print(f"{num_workers} workers: {results[-1]}", flush=True)
    alone, both = found[1], found[2]
    print(f"pairs per core and second: {_median(alone, 'per_core'):.1f}; {alone[0].pair_kb:.0f} kB per pair")
    on_clock = _median(both, "rate") / _median(alone, "rate")
    # On a machine that others use, too, the clock says what they left; this does not.
    share = _median(both, "undisturbed_rate") / _median(alone, "undisturbed_rate")
    print(
        f"two workers against one: {on_clock:.2f}x on the clock, {share:.2f}x by the time of cores and of idling; "
        f"wanted: at least {MIN_SPEEDUP}x"
    )
    show(
        "pairs per second, 2 workers",
        _median(both, "rate"),
        "1/s",
        _median(alone, "rate"),
        wanted=f"ratio >= {MIN_SPEEDUP}",
    )
    small = found[2][0]
    large = measure(data, folder / "large", num_pairs * factor, 2, size_px)
    for name, one in (("small", small), ("large", large)):
        print(
            f"{name}: {one.pairs:6,} pairs  peak of the driver {one.driver_mib:6.0f} MiB, of a worker "
            f"{one.worker_mib:6.0f} MiB  plan {one.plan_s:5.1f} s, card {one.card_s:5.1f} s"
        )
    print(
        f"memory at {large.pairs / small.pairs:.0f} times the size: driver {large.driver_mib / small.driver_mib:.2f}x, "
        f"worker {large.worker_mib / small.worker_mib:.2f}x; wanted: 1, that is no growth"
    )


def _median(results: list[Figures], name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in results))


def main() -> None:
    """Measures in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--factor", type=int, default=8)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        data, output, *numbers = options.measure
        num_pairs, num_workers, size_px = map(int, numbers)
        figures = build(Path(data), Path(output), num_pairs, num_workers, size_px)
        print(json.dumps(dataclasses.asdict(figures)))
        return
    with tempfile.TemporaryDirectory(prefix="ezigen-bench-") as folder:
        compare(Path(folder), options.pairs, options.factor, options.size, options.repeats)


if __name__ == "__main__":
    main()
