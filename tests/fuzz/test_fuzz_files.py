"""Damaged files: whatever comes, it is read or refused by the documented errors."""

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from ezigen.adapters import read_card
from ezigen.adapters.card import CARD_FILE
from ezigen.config import ConfigurationError, ErrorCode, ItemError
from ezigen.images import decode_picture
from ezigen.mini import weights_folder
from ezigen.models.location import check_safetensors, find_weights
from tasks.catalog.checking import BatchChecker, RowChecker
from tasks.catalog.rows import RunFingerprint
from tasks.datasets.catalogs import CATALOG_SCHEMA, read_catalog
from tasks.storage import Locations, locate
from tests.fuzz.hostile import as_json, attempt, bounded, damaged, edited, fuzzed, with_png_checksums

ROWS = [
    {"item_id": "a", "subject_uri": "p/x.png", "subject_class": "mug", "prompt": "on a beach", "seed": "7"},
    {"item_id": "b", "subject_uri": '["x.png", "y.png"]', "subject_class": '["cup", "hat"]',
     "prompt": 'the "best", ünd', "subject_mix": "[0.25, 0.75]"},
    {"item_id": "c", "subject_uri": "s3://shop/x.png", "prompt": "two\nlines", "negative_prompt": "blur",
     "source_uri": "room.jpg", "mask_box": "1,2,30,40"},
    {"item_id": "d", "subject_uri": "/data/x.png", "prompt": "p", "source_uri": "r.png", "mask_uri": "m.png",
     "subject_mask_uri": "k.png"},
]  # fmt: skip
NAMES = list(dict.fromkeys(name for row in ROWS for name in row))


def as_csv() -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, NAMES)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def as_parquet(**options) -> bytes:
    data = io.BytesIO()
    pq.write_table(pa.table({name: [row.get(name) for row in ROWS] * 20 for name in NAMES}), data, **options)
    return data.getvalue()


CATALOGS = {
    "csv": [as_csv(), b"\xef\xbb\xbf" + as_csv()],
    "jsonl": [b"\n".join(map(as_json, ROWS))],
    "parquet": [
        as_parquet(),
        as_parquet(use_dictionary=False, compression="zstd"),
        as_parquet(data_page_version="2.0"),
    ],
}


@pytest.mark.parametrize("kind", CATALOGS)
@fuzzed()
@given(data=st.data())
def test_catalogs(kind, data, tmp_path):
    check_catalog(tmp_path / f"catalog.{kind}", data.draw(damaged(CATALOGS[kind])))


@fuzzed()
@given(rows=st.lists(edited(ROWS), min_size=1, max_size=4))
def test_rows(rows, tmp_path):
    check_catalog(tmp_path / "catalog.jsonl", b"\n".join(map(as_json, rows)))


def check_catalog(path, content: bytes) -> None:
    """Every row is good or refused, and each has a key of its own kind."""
    path.write_bytes(content)
    locations = Locations(allowed_roots=(str(path.parent), "s3://shop"), base_uri=str(path.parent))
    checker = BatchChecker(RowChecker(RunFingerprint("s", "m", "a"), locations))
    with bounded(path.parent):
        batches, error = attempt(lambda: list(read_catalog(str(path), locations)), ConfigurationError)
        for batch in batches or ():
            assert batch.schema == CATALOG_SCHEMA
            batch.validate(full=True)
            checker.check(batch, 0)
    assert batches or str(path) in str(error)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def pictures() -> dict[str, list[bytes]]:
    noise = Image.effect_noise((24, 20), 90)
    rgb, clear = noise.convert("RGB"), noise.convert("RGBA")
    clear.putalpha(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    many = {"save_all": True, "append_images": [rgb.rotate(90), rgb]}
    return {
        "PNG": [
            encoded(clear, "PNG", exif=exif),
            encoded(rgb.quantize(8), "PNG", transparency=0),
            encoded(noise.convert("I;16"), "PNG"),
            encoded(rgb, "PNG", **many),
        ],
        "JPEG": [
            encoded(rgb, "JPEG", exif=exif),
            encoded(rgb, "JPEG", progressive=True),
            encoded(rgb.convert("CMYK"), "JPEG"),
            encoded(rgb, "MPO", **many),
        ],
        "WEBP": [encoded(clear, "WEBP"), encoded(rgb, "WEBP", lossless=True, exif=exif), encoded(rgb, "WEBP", **many)],
        "GIF": [encoded(rgb.quantize(8), "GIF", transparency=0), encoded(rgb, "GIF", **many)],
        "BMP": [encoded(rgb, "BMP"), encoded(rgb.quantize(4), "BMP")],
        "TIFF": [
            encoded(clear, "TIFF", compression="tiff_deflate", exif=exif),
            encoded(rgb, "TIFF", compression="jpeg"),
            encoded(noise.convert("1"), "TIFF", compression="group4"),
            encoded(rgb, "TIFF"),
        ],
        "AVIF": [encoded(clear, "AVIF", speed=10)],
    }


PICTURES = pictures()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", PICTURES)
@fuzzed()
@given(data=st.data())
def test_pictures(form, data):
    content = data.draw(damaged(PICTURES[form], with_png_checksums if form == "PNG" else None))
    with bounded():
        picture, error = attempt(lambda: decode_picture(content, max_side_px=4096, max_pixels=1_000_000), ItemError)
    if picture is None:
        assert error.code in (ErrorCode.IMAGE_UNDECODABLE, ErrorCode.IMAGE_TOO_LARGE, ErrorCode.IMAGE_TOO_SMALL)
        return
    assert picture.rgb.mode == "RGB"
    assert picture.rgb.width * picture.rgb.height <= 1_000_000
    assert picture.mask is None or picture.mask.size == picture.rgb.size


def header_of(entries: object) -> bytes:
    header = as_json(entries)
    return len(header).to_bytes(8, "little") + header + bytes(16)


ENTRIES = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "F16", "shape": [2, 2], "data_offsets": [8, 16]},
}
INDEX = {"metadata": {"total_size": 16}, "weight_map": {"a": "model.safetensors.1", "b": "model.safetensors.1"}}


@fuzzed()
@given(content=damaged([header_of(ENTRIES)]) | edited([ENTRIES]).map(header_of))
def test_weights(content, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with bounded(tmp_path):
        checked, error = attempt(lambda: check_safetensors(path), ConfigurationError)
        if checked:
            attempt(lambda: load_file(checked), SafetensorError)
    assert checked or str(path) in str(error)


@fuzzed(0.5)
@given(content=damaged([as_json(INDEX)]) | edited([INDEX]).map(as_json))
def test_lists_of_weights(content, tmp_path):
    (tmp_path / "model.safetensors.1").write_bytes(header_of(ENTRIES))
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with bounded(tmp_path):
        found, error = attempt(lambda: find_weights(tmp_path), ConfigurationError)
    assert all(path.parent == tmp_path for path in found) if found else str(tmp_path) in str(error)


CARD = json.loads((weights_folder() / "adapter" / CARD_FILE).read_bytes())


@fuzzed(0.5)
@given(content=damaged([as_json(CARD)]) | edited([CARD]).map(as_json))
def test_cards_of_adapters(content, tmp_path):
    (tmp_path / CARD_FILE).write_bytes(content)
    with bounded(tmp_path):
        card, error = attempt(lambda: read_card(tmp_path), ConfigurationError)
    assert card or str(tmp_path) in str(error)


REFUSALS = (ErrorCode.LOCATION_DENIED, ErrorCode.LOCATION_UNKNOWN_SCHEME, ErrorCode.IMAGE_MISSING)
PIECES = st.sampled_from(
    ["..", ".", "/", "//", "a", "in", "x.png", "link", "out", "%2e", "%2F", "%00", "%ff", "file:", "s3:", "s3://", "~",
     ":", "\\", "\x00", " ", "@", "?", "#", "*", "\u2215", "\uff0f", "\u2024", "\ud800", "localhost", "x" * 300]
)  # fmt: skip


@fuzzed(2)
@given(uri=st.lists(PIECES, max_size=10).map("".join) | st.text(max_size=30))
def test_locations(uri, tmp_path):
    """Nothing but the one file inside is ever read."""
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "x.png").write_bytes(folder.encode())
    if not (tmp_path / "in/link").is_symlink():
        (tmp_path / "in/link").symlink_to(tmp_path / "out")
    inside = str(tmp_path / "in")
    locations = Locations(allowed_roots=(inside,), base_uri=inside)
    with bounded(tmp_path / "in"):
        data, error = attempt(lambda: locations.read_bytes(uri), ItemError)
        _, own_error = attempt(lambda: locate(uri), ConfigurationError)
    assert data == b"in" or error.code in REFUSALS
    assert all(str(said).isprintable() for said in (error, own_error) if said)
