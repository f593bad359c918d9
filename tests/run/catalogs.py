"""Small catalogs with pictures, and what a complete output looks like."""

import csv
import hashlib
from collections import Counter
from io import BytesIO
from pathlib import Path

from PIL import Image

from tasks.catalog.results import ResultRow
from tasks.storage import RunOutput
from tasks.storage.ledger import ResultsLedger

COLUMNS = ("item_id", "subject_uri", "subject_class", "prompt", "seed")


def write_catalog(folder: Path, num_items: int, prompts: dict[int, str] | None = None, **cells: dict[int, str]) -> Path:
    """A catalog of good rows; `prompts` and other columns (by name) replace single cells."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in (("red", (220, 30, 20)), ("blue", (20, 60, 230))):
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    changes = {"prompt": prompts or {}, **cells}
    path = folder / "catalog.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for index in range(num_items):
            row = {
                "item_id": f"item-{index}",
                "subject_uri": ("red.png", "blue.png")[index % 2],
                "subject_class": "cup",
                "prompt": f"a cup on a table {index}",
                "seed": str(index),
            }
            row.update({column: values[index] for column, values in changes.items() if index in values})
            writer.writerow([row[column] for column in COLUMNS])
    return path


def resolved_rows(output_folder: Path | str) -> dict[str, ResultRow]:
    """One row per item_id, as the ledger resolves them."""
    rows = list(ResultsLedger(RunOutput(str(output_folder))).rows())
    assert len({row.item_id for row in rows}) == len(rows)
    return {row.item_id: row for row in rows}


def image_hashes(output_folder: Path | str) -> dict[str, str]:
    return {item_id: row.image_sha256 for item_id, row in resolved_rows(output_folder).items() if row.image_sha256}


def assert_complete(output_folder: Path, num_items: int, failed: set[str] = frozenset()) -> None:
    """Every item has one row, every done row its image, and nothing else lies around."""
    rows = resolved_rows(output_folder)
    assert set(rows) == {f"item-{index}" for index in range(num_items)}
    assert {item_id for item_id, row in rows.items() if row.status == "failed"} == failed
    assert_stored_once(output_folder)


def assert_stored_once(output_folder: Path) -> None:
    """Every done row has its image, no item has two of them, and nothing half-written lies around."""
    done = [row for row in resolved_rows(output_folder).values() if row.status == "done"]
    for row in done:
        data = (output_folder / row.image_uri).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row.image_sha256
        assert len(data) == row.image_bytes
        Image.open(BytesIO(data)).load()
    images = {path.relative_to(output_folder).as_posix() for path in (output_folder / "images").rglob("*.png")}
    assert {row.image_uri for row in done} <= images
    assert not list(output_folder.rglob(".partial-*"))
    stored = Counter(row.item_key for row in RunOutput(str(output_folder)).read_result_rows() if row.status == "done")
    assert max(stored.values(), default=1) == 1


class Computed:
    """Which items the networks worked on, by the diary of the light workers."""

    def __init__(self, output_folder: Path) -> None:
        self.path = output_folder / "diary"

    def keys(self) -> list[str]:
        if not self.path.exists():
            return []
        return [line.split()[1] for line in self.path.read_text().splitlines() if line.count(" ") == 1]

    def pids(self) -> set[int]:
        return {int(line.split()[0]) for line in self.path.read_text().splitlines()} if self.path.exists() else set()
