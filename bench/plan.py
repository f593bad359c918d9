"""Planning a large catalog, half of it done: time and memory, against doing it row by row with Python objects.

    python bench/plan.py [--rows 10000000] [--format csv|jsonl|parquet]

Each measurement runs in a process of its own, so that its peak memory is its own. The baseline reads at most
--baseline-rows rows; its figures are scaled up to all of them.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from lines import show

from ezigen.config import CatalogInputs, SamplerConfig
from tasks.catalog.checking import RowChecker
from tasks.catalog.plan import plan_catalog
from tasks.catalog.results import RESULTS_SCHEMA
from tasks.catalog.rows import ItemKeys, RunFingerprint, parse_row
from tasks.catalog.survey import survey_catalog
from tasks.datasets.catalogs import Catalog
from tasks.storage import Locations, RunOutput
from tasks.storage.keys import words_to_hex

SAMPLER = SamplerConfig()
WANTED = "10 million rows, half of them done, in 180 s and 1.5 GiB"
FINGERPRINT = RunFingerprint(SAMPLER.digest(), "model", "adapter")
ROWS_PER_SHARD = 100_000
SCENES = ("on a beach", "in the snow", "on a wooden table", "in front of a brick wall", "under a christmas tree")


def write_catalog(path: Path, num_rows: int) -> None:
    """Products times scenes, with a wrong row in every thousand and a repeated item_id in every ten thousand."""
    writers: dict[str, Callable[[Path, int], None]] = {
        ".csv": _write_csv,
        ".jsonl": _write_jsonl,
        ".parquet": _write_parquet,
    }
    writers[path.suffix](path, num_rows)


def _row(n: int) -> dict[str, str]:
    return {
        "item_id": f"sku-{n - 1 if n % 10_000 == 9_999 else n:09d}",
        "subject_uri": f"pictures/{n // 5 % 1000:03d}/{n // 5:08d}.png",
        "subject_class": "backpack",
        "prompt": "" if n % 1000 == 500 else f"a photo of a backpack {SCENES[n % 5]}, style {n % 40}",
    }


def _write_csv(path: Path, num_rows: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(_row(0)))
        writer.writeheader()
        writer.writerows(_row(n) for n in range(num_rows))


def _write_jsonl(path: Path, num_rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(_row(n)) + "\n" for n in range(num_rows))


def _write_parquet(path: Path, num_rows: int) -> None:
    schema = pa.schema([(name, pa.string()) for name in _row(0)])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, num_rows, ROWS_PER_SHARD):
            stop = min(start + ROWS_PER_SHARD, num_rows)
            writer.write_table(pa.Table.from_pylist([_row(n) for n in range(start, stop)], schema=schema))


def write_half_of_the_results(catalog: Path, output: RunOutput) -> None:
    """A done row for every second row of the catalog, in shards as a compaction leaves them."""
    locations = Locations(allowed_roots=(str(catalog.parent),), base_uri=str(catalog.parent))
    survey = survey_catalog(Catalog.at(str(catalog), locations), RowChecker(FINGERPRINT, locations))
    for index, start in enumerate(range(0, len(survey.words), 2 * ROWS_PER_SHARD)):
        keys = words_to_hex(survey.words[start : start + 2 * ROWS_PER_SHARD : 2])
        output.write_shard("bench", index, _done_rows(keys))


def _done_rows(keys: list[str]) -> pa.Table:
    given = {
        "item_key": pa.array(keys),
        "item_id": pa.array(keys),
        "row_index": pa.array(np.arange(len(keys))),
        "run_id": pa.repeat("bench", len(keys)),
        "status": pa.repeat("done", len(keys)),
        "attempts": pa.repeat(pa.scalar(1, pa.int32()), len(keys)),
        "finished_at": pa.repeat(pa.scalar(datetime.now(UTC), pa.timestamp("us", tz="UTC")), len(keys)),
    }
    columns = [given.get(f.name, pa.nulls(len(keys), f.type)) for f in RESULTS_SCHEMA]
    return pa.Table.from_arrays(columns, schema=RESULTS_SCHEMA)


def plan(catalog: str, output: str, _num_rows: int) -> int:
    """The plan as a run makes it; returns the number of items to do."""
    inputs = CatalogInputs(catalog_uri=catalog, output_uri=output)
    planned = plan_catalog(inputs, SAMPLER, "model", "adapter")
    assert sum(planned.counts.refused_by_code.values()) == planned.counts.refused
    return planned.counts.to_do


def read_items(catalog: str, output: str, _num_rows: int) -> int:
    """The plan and then every item, as if workers took no time; returns how many items there are."""
    planned = plan_catalog(CatalogInputs(catalog_uri=catalog, output_uri=output), SAMPLER, "model", "adapter")
    return sum(1 for _ in planned.items())


def plan_row_by_row(catalog: str, output: str, num_rows: int) -> int:
    """The same with a list of rows, a set of known keys and a set of seen ids; stops after `num_rows` rows."""
    keys, done = ItemKeys(FINGERPRINT), _known_keys(output)
    seen: set[str] = set()
    to_do = []
    with Path(catalog).open(newline="", encoding="utf-8") as file:
        for n, values in enumerate(csv.DictReader(file)):
            if n == num_rows:
                break
            if not values["prompt"] or values["item_id"] in seen:
                continue
            row = parse_row(n, values)
            seen.add(row.item_id)
            if keys.of_row(row) not in done:
                to_do.append(row)
    return len(to_do)


def _known_keys(output: str) -> set[str]:
    done = pc.field("status") == "done"
    return {key for batch in RunOutput(output).read_results(["item_key"], done) for key in batch.column(0).to_pylist()}


MEASUREMENTS: dict[str, Callable[[str, str, int], int]] = {
    "plan": plan,
    "plan and read all items": read_items,
    "row by row": plan_row_by_row,
}


@dataclass(frozen=True)
class Figures:
    """What one measurement came to."""

    seconds: float
    cpu_s: float
    peak_gib: float
    value: int

    def __str__(self) -> str:
        return f"{self.seconds:7.1f} s ({self.cpu_s:6.1f} s of CPU)  {self.peak_gib:5.2f} GiB  {self.value:,} to do"


def measure(name: str, catalog: Path, output: Path, num_rows: int) -> Figures:
    """A function's figures in a process of its own."""
    command = [sys.executable, __file__, "--measure", name, str(catalog), str(output), str(num_rows)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Figures(**json.loads(answer.splitlines()[-1]))


def _measure_here(name: str, catalog: str, output: str, num_rows: str) -> None:
    started, started_cpu = time.perf_counter(), time.process_time()
    value = MEASUREMENTS[name](catalog, output, int(num_rows))
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, "peak_gib": peak_gib, "value": value}))


def main() -> None:
    """Writes a catalog and half of its results into a temporary folder, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--format", choices=["csv", "jsonl", "parquet"], default="csv")
    parser.add_argument("--baseline-rows", type=int, default=200_000)
    parser.add_argument("--measure", nargs=4, metavar=("NAME", "CATALOG", "OUTPUT", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        _measure_here(*options.measure)
        return
    with tempfile.TemporaryDirectory(prefix="ezigen-bench-") as folder:
        _compare(Path(folder), options.rows, options.format, min(options.baseline_rows, options.rows))


def _compare(folder: Path, num_rows: int, suffix: str, baseline_rows: int) -> None:
    catalog, output, baseline = folder / f"catalog.{suffix}", folder / "out", folder / "few"
    write_catalog(catalog, num_rows)
    write_half_of_the_results(catalog, RunOutput(str(output)))
    small = folder / "small.csv"
    write_catalog(small, baseline_rows)
    write_half_of_the_results(small, RunOutput(str(baseline)))
    print(f"{num_rows:,} rows, {catalog.stat().st_size / 2**20:,.0f} MiB of {suffix}, half of them done")
    planned = measure("plan", catalog, output, num_rows)
    print(f"plan                     {planned}", flush=True)
    print(f"plan and read all items  {measure('plan and read all items', catalog, output, num_rows)}", flush=True)
    by_row = measure("row by row", small, baseline, baseline_rows)
    print(f"row by row               {by_row} of {baseline_rows:,}")
    scale = num_rows / baseline_rows
    show(f"seconds to plan {num_rows:,} rows", planned.seconds, "s", by_row.seconds * scale, wanted=WANTED)
    show("peak memory of planning", planned.peak_gib, "GiB", wanted=WANTED)
    print(f"CPU time for all rows, row by row against plan: {by_row.cpu_s * scale / planned.cpu_s:.1f}x")


if __name__ == "__main__":
    main()
