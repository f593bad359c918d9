"""A catalog run of many rows with a simulated engine: speed, memory, requests and sizes of everything around it.

    PYTHONPATH=. python bench/load.py [--rows 100000] [--pictures 40] [--s3] [--killed] [--save FILE.json]
    PYTHONPATH=. python bench/load.py --rows 1000000 --at-rest
    PYTHONPATH=. python bench/load.py --draw FILE.json docs/images/load-memory.svg

It runs `ezigen personalize` as people do: a real Prefect server, a real Ray, real workers and a real ledger. Only the
networks are replaced by a few lines of arithmetic. Then the same command again, which finds nothing to do, and the
commands that look at the output. --pictures 0 gives every row a picture of its own; --s3 stores into a SeaweedFS
server; --killed kills the run with SIGKILL when half of it is done, and measures the run that continues it. --at-rest
makes no images: it writes what a finished run leaves, and measures what comes after it.
"""

import argparse
import csv
import functools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lines import show
from load_at_rest import write_finished
from load_memory import MemorySampler, peaks, slopes, to_plain
from load_plot import draw
from PIL import Image

from tasks.storage import Locations, RunOutput
from tests.reports.browser import Browser
from tests.s3_server import run_s3_server

DRIVER = Path(__file__).with_name("load_run.py")
SCENES = ("on a beach", "in the snow", "on a wooden table", "in front of a brick wall", "under a christmas tree")
PICTURE_PX = 256
_KINDS = ("images/", "results/", "report.html", "run.json", "review.html")


# ---- the catalog


def write_catalog(folder: Path, num_rows: int, num_pictures: int) -> Path:
    """Products times scenes. Of a thousand rows one has no prompt and one a picture that is missing.

    num_pictures: how many the rows share; 0 for one per row.
    """
    pictures = folder / "pictures"
    for number in range(num_pictures or num_rows):
        path = pictures / f"{number // 1000:04d}" / f"{number:08d}.png"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        hue = (37 * number % 256, 91 * number % 256, 151 * number % 256)
        Image.new("RGB", (PICTURE_PX, PICTURE_PX), hue).save(path)
    path = folder / "catalog.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("item_id", "subject_uri", "subject_class", "prompt"))
        writer.writerows(_row(n, num_pictures or num_rows) for n in range(num_rows))
    return path


def _row(n: int, num_pictures: int) -> tuple[str, str, str, str]:
    number = n % num_pictures
    picture = "missing.png" if n % 1000 == 501 else f"pictures/{number // 1000:04d}/{number:08d}.png"
    prompt = "" if n % 1000 == 500 else f"a photo of a backpack {SCENES[n % 5]}, style {n % 40}"
    return f"sku-{n:09d}", picture, "backpack", prompt


# ---- the run, in a process of its own


@dataclass
class Place:
    """Where a run reads and writes, and the environment that reaches it."""

    folder: Path
    catalog_uri: str
    output_uri: str
    environment: dict[str, str] = field(default_factory=dict)
    metrics_url: str = ""

    @property
    def output(self) -> RunOutput:
        """The run's output."""
        return RunOutput(self.output_uri, Locations())

    @property
    def prefect_home(self) -> Path:
        """Where Prefect keeps its database."""
        return self.folder / "prefect"


def run_once(place: Place, name: str, *, kill_after: int | None = None) -> dict[str, Any]:
    """One `ezigen personalize` and everything that is measured of it. kill_after: items after which it is killed."""
    notes = place.folder / f"notes-{name}"
    notes.mkdir()
    command = [sys.executable, str(DRIVER), str(notes), "personalize", place.catalog_uri, place.output_uri]
    before, started = _s3_requests(place), time.perf_counter()
    with (notes / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--workers", "2"], env=place.environment, stdout=log, stderr=log, start_new_session=True
        )
        finished = functools.partial(_read_number, notes / "finished")
        with MemorySampler(process.pid, finished) as sampler:
            while process.poll() is None:
                time.sleep(0.1)
                if kill_after is not None and finished() >= kill_after:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
    seconds = time.perf_counter() - started
    if process.returncode != (0 if kill_after is None else -signal.SIGKILL):
        raise RuntimeError(f"the run ended with {process.returncode}:\n{(notes / 'log').read_text()[-3000:]}")
    return {
        "name": name,
        "seconds": round(seconds, 2),
        "finished": finished(),
        "peak_mib": peaks(sampler.samples),
        "mib_per_10k_items": {name: round(slope, 3) for name, slope in slopes(sampler.samples).items()},
        "cpu_s": {name: round(spent, 1) for name, spent in sampler.cpu_s.items()},
        "s3_requests": dict(sorted((_s3_requests(place) - before).items())),
        "prefect": _prefect_facts(place.prefect_home),
        **(json.loads((notes / "facts.json").read_text()) if kill_after is None else {}),
        "samples": to_plain(sampler.samples),
    }


def _read_number(path: Path) -> int:
    text = path.read_text() if path.exists() else ""
    return int(text or 0)


# ---- what it left behind


def _query(home: Path, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{home / 'prefect.db'}?mode=ro", uri=True) as database:
        return database.execute(sql).fetchall()


def _prefect_facts(home: Path) -> dict[str, Any]:
    """Size and rows of the database, and the largest artifact."""
    tables = ("flow_run", "task_run", "log", "events", "artifact", "artifact_collection")
    counts = {table: _query(home, f"SELECT count(*) FROM {table}")[0][0] for table in tables}
    size = sum(path.stat().st_size for path in home.glob("prefect.db*"))
    largest = _query(home, "SELECT coalesce(max(length(data)), 0) FROM artifact")[0][0]
    return {"database_bytes": size, "rows": counts, "largest_artifact_bytes": largest}


def count_objects(place: Place) -> dict[str, dict[str, int]]:
    """Number and bytes of the output's objects by kind, and how many the fullest folder holds."""
    found = place.output.filesystem.find(place.output.root.path, detail=True)
    kinds: dict[str, Counter[str]] = {}
    folders: Counter[str] = Counter()
    for path, entry in found.items():
        relative = path.removeprefix(place.output.root.path).lstrip("/")
        kind = next((kind for kind in _KINDS if relative.startswith(kind)), "other")
        folders[relative.rpartition("/")[0]] += 1
        kinds.setdefault(kind, Counter()).update({"number": 1, "bytes": int(entry["size"] or 0)})
    fullest = {"number": max(folders.values(), default=0)}
    return {**{kind: dict(counts) for kind, counts in sorted(kinds.items())}, "fullest folder": fullest}


def time_commands(place: Place, left_out: Collection[str] = ()) -> dict[str, float]:
    """Wall seconds of the commands that look at an output; the first says what starting `ezigen` costs."""
    commands = {
        "--help": ["--help"],
        "status": ["status", place.output_uri],
        "results --failed": ["results", place.output_uri, "--failed"],
        "results --format csv": ["results", place.output_uri, "--format", "csv"],
        "plan": ["plan", place.catalog_uri, place.output_uri],
        "inspect": ["inspect", place.output_uri, "--save", str(place.folder / "inspect")],
        "review create": ["review", "create", place.output_uri],
    }
    seconds = {}
    for name, arguments in commands.items():
        if name in left_out:
            continue
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "flows.command_line", *arguments],
            env=place.environment,
            check=True,
            capture_output=True,
        )
        seconds[name] = round(time.perf_counter() - started, 2)
        (place.folder / f"{name.replace(' ', '-')}.out").write_bytes(done.stdout)
    return seconds


def open_page(place: Place, page: str) -> dict[str, float]:
    """Seconds until a page of the output has opened in Chromium, its elements, its script memory and its size."""
    path = place.folder / page
    path.write_bytes(place.output.read(page))
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        browser.call("Performance.enable")
        started = time.perf_counter()
        browser.open(path)
        browser.run("new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve)))")
        seconds = time.perf_counter() - started
        metrics = {one["name"]: one["value"] for one in browser.call("Performance.getMetrics")["metrics"]}
        if browser.errors:
            raise RuntimeError(f"{page}: {browser.errors[:3]}")
    return {
        "seconds": round(seconds, 2),
        "elements": metrics["Nodes"],
        "script_mib": round(metrics["JSHeapUsedSize"] / 2**20, 1),
        "mib": round(path.stat().st_size / 2**20, 2),
    }


# ---- S3


@contextmanager
def s3_place(folder: Path, catalog: Path) -> Iterator[Place]:
    """The catalog's folder and an output in a bucket of a SeaweedFS server."""
    data = folder / "s3"
    data.mkdir()
    with run_s3_server(data) as server:
        os.environ.update(server.environment)
        bucket = server.make_bucket("load")
        output = RunOutput(f"{bucket}/shop")
        output.filesystem.put(f"{catalog.parent}/", f"{output.root.path}/", recursive=True)
        yield Place(folder, f"{bucket}/shop/{catalog.name}", f"{bucket}/out", metrics_url=server.metrics_url)


_METRIC = re.compile(r'^SeaweedFS_s3_request_total\{.*bucket="load".*type="(\w+)".*\} ([0-9.e+]+)', re.MULTILINE)


def _s3_requests(place: Place) -> Counter[str]:
    """Requests by kind, as the server counts them."""
    counts: Counter[str] = Counter()
    if place.metrics_url:
        with urllib.request.urlopen(place.metrics_url) as answer:
            for kind, number in _METRIC.findall(answer.read().decode()):
                counts[kind] += round(float(number))
    return counts


# ---- all of it


def measure(place: Place, options: argparse.Namespace) -> dict[str, Any]:
    """The runs, then the output and the commands that look at it."""
    runs, pages, left_out = [], ["report.html", "review.html"], set()
    if options.at_rest:
        write_finished(place.catalog_uri, place.output)
        pages, left_out = ["report.html"], {"review create"}  # it shows images
    elif options.killed:
        runs.append(run_once(place, "killed half-way", kill_after=options.rows // 2))
        runs.append(run_once(place, "continued"))
    else:
        runs.append(run_once(place, "first"))
    runs.append(run_once(place, "repeated"))
    commands = time_commands(place, left_out)
    return {
        "rows": options.rows,
        "pictures": options.pictures or options.rows,
        "store": "s3" if options.s3 else "folder",
        "runs": runs,
        "objects": count_objects(place),
        "command_s": commands,
        "pages": {page: open_page(place, page) for page in pages} if options.pages else {},
    }


def print_figures(figures: Mapping[str, Any]) -> None:
    """What people read, and a line of JSON for the main figures."""
    setting = f"{figures['rows']:,} rows, {figures['pictures']:,} pictures, {figures['store']}"
    print(f"== {setting}")
    for run in figures["runs"]:
        shown = {name: value for name, value in run.items() if name != "samples"}
        print(json.dumps(shown, indent=1))
    for name in ("objects", "command_s", "pages"):
        print(name, json.dumps(figures[name], indent=1))
    *_, run, repeated = [None, *figures["runs"]]
    show(f"the same again, {setting}", repeated["seconds"], "s", run and run["seconds"], wanted="seconds")
    if run is not None:
        show(f"rows per second, {setting}", run["finished"] / run["stage_s"]["generate"], "1/s")
        for name, slope in run["mib_per_10k_items"].items():
            show(f"memory of {name}, {setting}", slope, "MiB per 10,000 rows", wanted="none")


def main() -> None:
    """Writes a catalog, runs it, looks at what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--killed", action="store_true")
    parser.add_argument("--at-rest", action="store_true")
    parser.add_argument("--no-pages", dest="pages", action="store_false", help="Do without Chromium.")
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="Keep everything there.")
    parser.add_argument("--draw", type=Path, nargs=2, metavar=("FILE.json", "FILE.svg"))
    options = parser.parse_args()
    if options.draw:
        options.draw[1].write_text(draw(json.loads(options.draw[0].read_text())))
        return
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ezigen-load-")))
        folder.mkdir(parents=True, exist_ok=True)
        catalog = write_catalog(folder / "shop", options.rows, options.pictures)
        local = Place(folder, str(catalog), str(folder / "out"))
        place = stack.enter_context(s3_place(folder, catalog)) if options.s3 else local
        place.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            "PREFECT_HOME": str(place.prefect_home),
            "PYTHONPATH": str(DRIVER.parent.parent),
        }
        figures = measure(place, options)
    print_figures(figures)
    if options.save:
        options.save.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
