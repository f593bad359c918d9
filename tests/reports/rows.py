"""Made-up outputs: result rows, strips and a run.json as a real run writes them."""

import colorsys
import hashlib
import io
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from PIL import Image, ImageDraw

from ezigen.config import ClusterConfig, ErrorCode, ModelConfig, embedded
from tasks.catalog.results import ResultRow
from tasks.storage import RunOutput, RunRecord
from tasks.storage.run_record import RunSummary

START = datetime(2026, 11, 22, 3, 12, 5, tzinfo=UTC)
RUN_ID = "20261122T031205Z-a1b2c3"
SCENES = (
    "on a beach",
    "in the snow",
    "on the grass",
    "under the night sky",
    "in front of a brick wall",
    "on a wooden table",
)
PRODUCTS = ("teapot", "running shoe", "desk lamp", "toy rocket", "guitar", "umbrella", "burger", "camera", "backpack")
FAILURES = (
    (ErrorCode.IMAGE_MISSING, "{id}: subject_uri products/{id}.png does not exist; upload it or correct the catalog"),
    (ErrorCode.IMAGE_UNDECODABLE, "{id}: subject_uri products/{id}.jpg is cut off after 1,024 of 88,310 bytes"),
    (ErrorCode.LOCATION_UNKNOWN_SCHEME, "{id}: subject_uri ftp://shop.example/{id}.png: only file and s3 can be read"),
    (ErrorCode.TIMED_OUT, "{id}: stopped after 900 s; raise cluster.item_timeout_s or use faster workers"),
)

Painter = Callable[[ResultRow, int], Image.Image]
"""Paints the panel of a row: 0 is the subject, the last one the result."""


def item_key(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def flat_panel(row: ResultRow, panel: int) -> Image.Image:
    """A colour per item and a mark per panel: enough to see which panel is which."""
    red, green, blue = colorsys.hsv_to_rgb(int(row.item_key[:2], 16) / 256, 0.6, 0.5 + 0.4 * (panel > 0))
    image = Image.new("RGB", (16, 16), (round(red * 255), round(green * 255), round(blue * 255)))
    ImageDraw.Draw(image).rectangle([0, 0, panel + 1, 2], fill="white")
    return image


def make_strip(row: ResultRow, num_panels: int, paint: Painter) -> bytes:
    panels = [paint(row, panel) for panel in range(num_panels)]
    strip = Image.new("RGB", (sum(panel.width for panel in panels), panels[0].height))
    for place, panel in enumerate(panels):
        strip.paste(panel, (place * panel.width, 0))
    data = io.BytesIO()
    strip.save(data, "WEBP", quality=80)
    return data.getvalue()


def make_row(
    index: int,
    *,
    failed: ErrorCode | None = None,
    run_id: str = RUN_ID,
    at_s: float = 0.0,
    paint: Painter | None = flat_panel,
) -> ResultRow:
    chance = random.Random(index)
    product, scene = PRODUCTS[index % len(PRODUCTS)], SCENES[index // 2 % len(SCENES)]
    row = ResultRow(
        item_key=item_key(f"item {index}"),
        item_id=f"{product.replace(' ', '-')}-{index:04d}",
        row_index=index,
        run_id=run_id,
        status="failed" if failed else "done",
        attempts=1,
        finished_at=START + timedelta(seconds=at_s),
        prompt=f"a {product} {scene}",
        subject_uri=f"products/{product}-{index:04d}.png",
        subject_class=product,
        seed=chance.getrandbits(63),
        worker=f"worker-{index % 2}",
        seconds=chance.lognormvariate(1.1, 0.25),
    )
    if failed:
        message = dict(FAILURES).get(failed, "{id}: it failed").format(id=row.item_id)
        return replace(row, error_code=failed, error_message=message, seconds=0.02)
    return _with_result(row, chance, paint)


def _with_result(row: ResultRow, chance: random.Random, paint: Painter | None) -> ResultRow:
    num_loops = min(6, max(2, round(chance.gauss(3.4, 1.1))))
    similarities = tuple(round(1 - 0.25 * 0.45 ** (k + 1) * chance.uniform(0.5, 1.2), 4) for k in range(num_loops))
    row = replace(
        row,
        image_uri=f"images/{row.item_key[:2]}/{row.item_key}.png",
        image_sha256=hashlib.sha256(row.item_key.encode()).hexdigest(),
        image_bytes=9_000,
        width_px=64,
        height_px=64,
        num_loops=num_loops,
        stop_reason="max_loops" if num_loops == 6 else "threshold",
        similarities=similarities,
        scores={"clip_t": round(chance.gauss(0.312, 0.02), 4), "dino": round(min(0.97, chance.gauss(0.71, 0.08)), 4)},
        num_unet_calls=51 + 20 * num_loops,
    )
    return replace(row, preview=make_strip(row, num_loops + 3, paint), preview_panels=num_loops + 3) if paint else row


def make_rows(
    num_rows: int, *, num_failed: int = 0, paint: Painter | None = flat_panel, rate_per_s: float = 0.5
) -> Iterator[ResultRow]:
    """Rows in the order in which two workers would finish them, failures spread among them."""
    every = num_rows // num_failed if num_failed else num_rows + 1
    for index in range(num_rows):
        code = FAILURES[index // every % len(FAILURES)][0] if index % every == every - 1 else None
        yield make_row(
            index, failed=code, at_s=9 + (index + random.Random(index).uniform(0, 6)) / rate_per_s, paint=paint
        )


def make_record(counts: dict[str, int], seconds: float, **changes: object) -> RunRecord:
    record = RunRecord(
        run_id=RUN_ID,
        state="finished",
        started_at=START.isoformat(timespec="milliseconds"),
        finished_at=(START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds"),
        inputs={
            "catalog_uri": "catalog/catalog.csv",
            "output_uri": "build/demo",
            "allowed_roots": [],
            "retry_failed": False,
            "limit": 0,
        },
        model=ModelConfig().model_dump(mode="json"),
        sampler=embedded().model_dump(mode="json"),
        cluster=ClusterConfig().model_dump(mode="json"),
        fingerprints={"model": item_key("model"), "adapter": item_key("adapter"), "sampler": embedded().digest()},
        versions={
            "ezigen-pipeline": "0.1.0",
            "python": "3.11.2",
            "torch": "2.13.0",
            "diffusers": "0.42.0",
            "ray": "2.60.0",
        },
        counts=counts,
        history=(
            RunSummary(
                "20261121T031200Z-00ff00",
                "stopped",
                "2026-11-21T03:12:00.000+00:00",
                "2026-11-21T03:13:40.000+00:00",
                {"rows": 40, "done": 12, "failed": 1},
                100.0,
            ),
        ),
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def make_output(
    folder: Path, rows: Iterator[ResultRow] | list[ResultRow], *, shard_size: int = 64, record: RunRecord | None = None
) -> RunOutput:
    output = RunOutput(str(folder))
    shard: list[ResultRow] = []
    num_shards = 0
    for row in rows:
        shard.append(row)
        if len(shard) == shard_size:
            output.write_results(row.run_id, num_shards, shard)
            num_shards, shard = num_shards + 1, []
    if shard:
        output.write_results(shard[0].run_id, num_shards, shard)
    if record:
        output.write_run(record)
    return output
