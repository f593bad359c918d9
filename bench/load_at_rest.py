"""What a finished run of very many rows leaves, written without a run: for looking at outputs of millions of rows."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice

from PIL import Image

from ezigen.config import ErrorCode, ItemError
from ezigen.images import thumbnail_strip
from flows.planning import make_plan
from flows.run_options import RunOptions
from tasks.catalog.plan import CatalogPlan
from tasks.catalog.results import ResultRow, failed_row, refused_row
from tasks.catalog.rows import Item
from tasks.storage import RunOutput, RunRecord, new_run_id
from tasks.storage.run_record import now_text

ROWS_PER_SHARD = 100_000
"""About as a merge leaves them."""
NUM_PREVIEWS = 2000


def write_finished(catalog_uri: str, output: RunOutput) -> None:
    """Result rows and run.json of a catalog all of whose rows have ended; there are no images."""
    plan = make_plan(RunOptions(catalog_uri, output.root_uri).parameters(), {})
    run_id, started_at = new_run_id(), now_text()
    rows, counts = _rows(plan, run_id), {"done": 0, "failed": 0, "unfinished": 0}
    for index in range(plan.counts.rows):
        shard = list(islice(rows, ROWS_PER_SHARD))
        if not shard:
            break
        output.write_results(run_id, index, shard)
        for row in shard:
            counts[row.status] += 1
    record = RunRecord(run_id, "running", started_at).closed("finished", {"rows": plan.counts.rows, **counts})
    output.write_run(record)


def _rows(plan: CatalogPlan, run_id: str) -> Iterator[ResultRow]:
    panels = [Image.effect_noise((96, 96), 60).convert("RGB") for _ in range(4)]
    strip, one_in = thumbnail_strip(panels), max(1, plan.counts.rows // NUM_PREVIEWS)
    for item in plan.items():
        if item.row.subject_uri == "missing.png":
            error = ItemError(ErrorCode.IMAGE_MISSING, "missing.png does not exist; check the row's location.")
            yield failed_row(item, error, run_id=run_id, worker="worker-1")
        else:
            yield _done_row(item, run_id, strip if item.row.index % one_in == 0 else None)
    for refusal in plan.refusals():
        yield refused_row(refusal, run_id=run_id)


def _done_row(item: Item, run_id: str, preview: bytes | None) -> ResultRow:
    row, key = item.row, item.item_key
    return ResultRow(
        item_key=key,
        item_id=row.item_id,
        row_index=row.index,
        run_id=run_id,
        status="done",
        attempts=1,
        finished_at=datetime.now(UTC),
        prompt=row.prompt,
        subject_uri=row.subject_uri,
        subject_class=row.subject_class,
        seed=row.seed,
        image_uri=f"images/{key[:2]}/{key}.png",
        image_sha256=2 * key,
        image_bytes=100_000,
        width_px=512,
        height_px=512,
        num_loops=5,
        stop_reason="threshold",
        similarities=(0.9, 0.95, 0.97, 0.98, 0.995),
        scores={"dino": int(key[:4], 16) / 65536, "clip_t": int(key[4:8], 16) / 65536},
        num_unet_calls=150,
        seconds=2.0,
        worker="worker-1",
        preview=preview,
        preview_panels=4 if preview else 0,
    )
