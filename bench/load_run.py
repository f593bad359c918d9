"""`ezigen` with workers whose networks take no time, and what of a run can only be seen from inside.

    PYTHONPATH=. python bench/load_run.py FOLDER personalize CATALOG OUTPUT [options]

FOLDER/finished holds the number of items that have ended, while it runs; FOLDER/facts.json at its end the seconds of
its stages and the requests that it made to Prefect's server.
"""

import functools
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

import flows.personalize_catalog
import tasks.catalog.run
import tasks.catalog.shard_writer
from flows.catalog_job import CatalogJob
from flows.command_line import main
from tests.run.light import LightEngine, LightWorker

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


class SimulatedWorker(LightWorker):
    """A catalog worker whose networks are a few lines of arithmetic."""

    def load_engine(self) -> LightEngine:
        """No diary, no pauses."""
        return LightEngine(seconds_per_item=0.0)


class Watch:
    """Seconds by stage and requests by kind."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.requests: Counter[str] = Counter()

    def time(self, owner: Any, name: str, stage: str) -> None:
        """From now on `owner.name` adds to a stage's seconds."""
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def timed(*positional: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*positional, **options)
            finally:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started

        setattr(owner, name, timed)

    def count(self, client: type[httpx.Client] | type[httpx.AsyncClient]) -> None:
        """From now on requests of this kind of client are counted."""
        send: Callable[..., Any] = client.send

        @functools.wraps(send)
        def counted(self_: Any, request: httpx.Request, **options: Any) -> Any:
            self.requests[f"{request.method} {_ID.sub('ID', request.url.path)}"] += 1
            return send(self_, request, **options)

        client.send = counted  # type: ignore[method-assign]


def simulate(notes: Path) -> None:
    """Runs of this process have simulated workers, and say how far they are."""
    run_catalog = tasks.catalog.run.run_catalog

    def run(*positional: Any, on_progress: Callable[[Any], None], **options: Any) -> Any:
        def note(progress: Any) -> None:
            (notes / "finished.new").write_text(str(progress.finished))
            (notes / "finished.new").replace(notes / "finished")  # never seen empty
            on_progress(progress)

        return run_catalog(*positional, on_progress=note, worker=SimulatedWorker, **options)

    tasks.catalog.run.run_catalog = run  # type: ignore[assignment]


def drive(notes: Path, arguments: list[str]) -> None:
    """`ezigen` with these arguments."""
    watch = Watch()
    for method, stage in (("make_plan", "plan"), ("work", "generate"), ("write_report", "report")):
        watch.time(CatalogJob, method, stage)
    watch.time(tasks.catalog.run, "compact_results", "merges")
    watch.time(tasks.catalog.shard_writer, "compact_results", "merges")
    watch.time(flows.personalize_catalog, "publish_results", "artifacts")
    watch.count(httpx.Client)
    watch.count(httpx.AsyncClient)
    simulate(notes)
    sys.argv = ["ezigen", *arguments]
    try:
        main()
    finally:
        rounded = {stage: round(seconds, 2) for stage, seconds in watch.seconds.items()}
        (notes / "facts.json").write_text(json.dumps({"stage_s": rounded, "requests": watch.requests}))


if __name__ == "__main__":
    drive(Path(sys.argv[1]), sys.argv[2:])
