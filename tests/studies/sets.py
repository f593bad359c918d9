"""Made-up outputs and folders whose images tell by their colour which method made them."""

from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from ezigen.images import encode_png
from tasks.storage import RunOutput
from tests.reports.rows import make_record, make_row

COLOURS = {"secretmethod": (220, 40, 40), "otherbaseline": (40, 90, 230), "thirdrival": (40, 170, 80)}


def paint(method: str, index: int, side: int = 64) -> Image.Image:
    """The method's colour, and a bar as long as the index."""
    image = Image.new("RGB", (side, side), COLOURS[method])
    ImageDraw.Draw(image).rectangle([0, 0, 4 + index * 3 % (side - 4), 8], fill="white")
    return image


def write_subjects(folder: Path, indices: range) -> None:
    for index in indices:
        path = folder / make_row(index, paint=None).subject_uri
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60), (200, 180, index * 7 % 256)).save(path)


def write_run(
    folder: Path, method: str, indices: range, *, shop: Path | None = None, side: int = 64, **changes: str
) -> RunOutput:
    """The output of a run with images as it stores them; its run.json names a catalog in `shop`."""
    output, rows = RunOutput(str(folder)), []
    for index in indices:
        row = replace(make_row(index, paint=None), **changes)
        stored = output.write_image(row.item_key, encode_png(paint(method, index, side)))
        rows.append(replace(row, image_uri=stored.uri, image_sha256=stored.sha256))
    output.write_results(rows[0].run_id, 0, rows)
    if shop:
        record = make_record({"rows": len(rows)}, 60)
        output.write_run(replace(record, inputs={**record.inputs, "catalog_uri": str(shop / "catalog.csv")}))
    return output


def write_folder(folder: Path, method: str, stems: list[str], side: int = 64, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, stem in enumerate(stems):
        paint(method, index, side).save(folder / f"{stem}{suffix}")
    return folder
