"""A batch from pictures to rows, in this process: one bad item never costs its mates."""

import hashlib
from io import BytesIO

import pytest
from PIL import Image

from ezigen.config import ErrorCode, ItemError
from ezigen.sampling import Sample
from tasks.catalog.making import ImageMaker, MakerSettings
from tasks.catalog.rows import CatalogRow, Item
from tasks.cluster.worker import BatchTooLarge, WorkerBroken
from tasks.storage import Locations, RunOutput


class Networks:
    """A generator that obeys the prompts, and remembers how it was called."""

    def __init__(self, max_images: int = 64) -> None:
        self.max_images = max_images
        self.slots: list[int] = []
        self.calls: list[list[str]] = []

    def load(self, num_slots: int) -> "Networks":
        self.slots.append(num_slots)
        return self

    def generate(self, requests) -> list[Sample]:
        self.calls.append([request.prompt for request in requests])
        if max(len(requests), self.slots[-1]) > self.max_images:
            raise MemoryError("no room")
        return [self._draw(request) for request in requests]

    @staticmethod
    def _draw(request) -> Sample:
        if request.prompt == "odd":
            raise ArithmeticError("division of a cup")
        if request.prompt == "fault":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if request.prompt == "item":
            raise ItemError(ErrorCode.GENERATION_FAILED, "the image is not finite")
        image = request.subjects[0].rgb.resize((16, 16))
        return Sample(
            key=request.key,
            image=image,
            sketch=image,
            loops=(image, image, image),
            num_loops=2,
            stop_reason="threshold",
            similarities=(0.9, 0.99),
            num_unet_calls=7,
            seconds=0.0,
        )


class Scorer:
    def score(self, _image, prompt, _subjects) -> dict[str, float]:
        if prompt == "no score":
            raise ValueError("cannot say")
        return {"clip_t": 0.25}


def picture(folder, name="a.png", size=(20, 10), colour=(200, 30, 30), mode="RGB") -> str:
    Image.new(mode, size, colour).save(folder / name)
    return name


def item(index: int, prompt: str = "a cup", subjects=("a.png",), **changes) -> Item:
    row = CatalogRow(
        index=index,
        item_id=f"item-{index}",
        subject_uris=subjects,
        subject_class="cup",
        prompt=prompt,
        seed=1,
        **changes,
    )
    return Item(row, hashlib.md5(str(index).encode()).hexdigest(), attempts=0)


@pytest.fixture
def make(tmp_path):
    picture(tmp_path)

    def make(items, networks=None, **changes):
        networks = networks or Networks()
        settings = MakerSettings(
            **{
                "locations": Locations(allowed_roots=(str(tmp_path),), base_uri=str(tmp_path)),
                "output": RunOutput(str(tmp_path / "out")),
                "run_id": "run-1",
                "num_slots": 4,
                "max_picture_side_px": 1000,
                "max_picture_pixels": 100_000,
                "preview_share": 1.0,
                **changes,
            }
        )
        maker = ImageMaker(settings, networks.load, Scorer(), worker="worker-9")
        return maker.make(items)

    return make


def test_a_done_row_describes_its_stored_image(make, tmp_path):
    (row,) = make([item(0)])
    data = (tmp_path / "out" / row.image_uri).read_bytes()
    assert row.status == "done"
    assert row.image_sha256 == hashlib.sha256(data).hexdigest()
    assert (row.image_bytes, row.width_px, row.height_px) == (len(data), 16, 16)
    assert (row.num_loops, row.stop_reason, row.similarities) == (2, "threshold", (0.9, 0.99))
    assert (row.scores, row.worker, row.attempts) == ({"clip_t": 0.25}, "worker-9", 1)
    assert row.seconds > 0
    strip = Image.open(BytesIO(row.preview))
    assert row.preview_panels == 5  # subject, sketch, first transfer, two loops
    assert strip.width == 5 * strip.height


def test_one_bad_item_never_costs_its_mates(make, tmp_path):
    (tmp_path / "text.png").write_text("no picture at all")
    (tmp_path / "tiny.png").write_bytes((tmp_path / picture(tmp_path, "t.png", (1, 1))).read_bytes())
    picture(tmp_path, "huge.png", (1200, 10))
    items = [
        item(0),
        item(1, subjects=("missing.png",)),
        item(2, subjects=("text.png",)),
        item(3, subjects=("tiny.png",)),
        item(4, subjects=("huge.png",)),
        item(5, subjects=("/etc/passwd",)),
        item(6, subjects=("ftp://x/y.png",)),
        item(7, prompt="odd"),
        item(8, prompt="item"),
        item(9, prompt="no score"),
    ]
    rows = make(items)
    assert [row.item_id for row in rows] == [each.row.item_id for each in items]
    assert [row.error_code for row in rows] == [
        None,
        ErrorCode.IMAGE_MISSING,
        ErrorCode.IMAGE_UNDECODABLE,
        ErrorCode.IMAGE_TOO_SMALL,
        ErrorCode.IMAGE_TOO_LARGE,
        ErrorCode.LOCATION_DENIED,
        ErrorCode.LOCATION_UNKNOWN_SCHEME,
        ErrorCode.GENERATION_FAILED,
        ErrorCode.GENERATION_FAILED,
        None,
    ]
    assert rows[2].error_message.startswith("text.png: ")
    assert rows[7].error_message == "ArithmeticError: division of a cup"
    assert rows[8].error_message == "the image is not finite"
    assert rows[9].scores == {}


def test_a_failing_batch_is_tried_item_by_item(make):
    networks = Networks()
    rows = make([item(0), item(1, prompt="odd"), item(2)], networks)
    assert [row.status for row in rows] == ["done", "failed", "done"]
    assert networks.calls == [["a cup", "odd", "a cup"], ["a cup"], ["odd"], ["a cup"]]


def test_out_of_memory_reduces_the_slots(make):
    networks = Networks(max_images=2)
    with pytest.raises(BatchTooLarge, match="4 images"):
        make([item(index) for index in range(4)], networks)
    assert networks.slots == [4, 2]

    networks = Networks(max_images=1)
    (row,) = make([item(0)], networks)
    assert row.status == "done"
    assert networks.slots == [4, 2, 1]

    networks = Networks(max_images=0)
    with pytest.raises(BatchTooLarge):
        make([item(0)], networks)


def test_a_device_fault_condemns_the_process_not_the_item(make):
    torch = pytest.importorskip("torch")
    assert torch.AcceleratorError
    with pytest.raises(WorkerBroken, match="illegal memory access"):
        make([item(0), item(1, prompt="fault")])


def test_an_image_that_cannot_be_stored_is_a_storage_error(make, tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    (row,) = make([item(0)])
    assert row.error_code is ErrorCode.STORAGE_ERROR
    assert row.num_unet_calls == 7


def test_a_mask_cuts_the_subject_out(make, tmp_path):
    mask = Image.new("L", (20, 10), 0)
    mask.paste(255, (0, 0, 10, 10))
    mask.save(tmp_path / "mask.png")
    (row,) = make([item(0, subject_mask_uri="mask.png")])
    image = Image.open(tmp_path / "out" / row.image_uri)
    assert image.getpixel((2, 8)) == (200, 30, 30)
    assert image.getpixel((14, 8)) == (255, 255, 255)

    picture(tmp_path, "small.png", (10, 10), 255, "L")
    rows = make(
        [item(0, subject_mask_uri="small.png"), item(1, subjects=("a.png", "a.png"), subject_mask_uri="mask.png")]
    )
    assert [row.error_code for row in rows] == [ErrorCode.MASK_MISMATCH] * 2


def test_previews_are_kept_for_a_share_that_does_not_change(make):
    items = [item(index) for index in range(40)]
    kept = [row.item_key for row in make(items, preview_share=0.5) if row.preview]
    assert 8 < len(kept) < 32
    assert kept == [row.item_key for row in make(items, preview_share=0.5) if row.preview]
    assert not [row for row in make(items, preview_share=0.0) if row.preview or row.preview_panels]


def test_seconds_add_up_to_the_batch(make):
    rows = make([item(0), item(1, subjects=("missing.png",))])
    assert rows[0].seconds == pytest.approx(rows[1].seconds)
