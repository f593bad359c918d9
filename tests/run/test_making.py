"""Items from pictures to rows, in this process: one bad item never costs its mates."""

import hashlib
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from io import BytesIO

import pytest
from PIL import Image

from ezigen.config import ConfigurationError, ErrorCode, ItemError, SamplerConfig
from ezigen.engine import Counters, Ended, EngineLimits, load_engine
from ezigen.sampling import Request, Sample
from tasks.actors.engine_loop import EngineLoop
from tasks.catalog.making import ImageMaker, MakerSettings
from tasks.catalog.rows import CatalogRow, Item
from tasks.cluster.worker import WorkerBroken
from tasks.storage import Locations, RunOutput


class Networks:
    """An engine that obeys the prompts, one request a step."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.peak_flops = None
        self.requests: list[Request] = []

    @property
    def num_held(self) -> int:
        return len(self.requests)

    @property
    def busy(self) -> bool:
        return bool(self.requests)

    def add(self, request) -> None:
        if request.prompt == "refused":
            raise ItemError(ErrorCode.ROW_INVALID, "not like this")
        self.requests.append(request)

    def withdraw(self, max_requests) -> list[str]:
        keys = [request.key for request in self.requests if request.prompt == "wait"][:max_requests]
        self.requests = [request for request in self.requests if request.key not in keys]
        return keys

    def drain(self, drains=True) -> None:
        pass

    def step(self) -> list[Ended]:
        ready = next((request for request in self.requests if request.prompt != "wait"), None)
        if ready is None:
            time.sleep(0.01)
            return []
        self.requests.remove(ready)
        if ready.prompt == "fault":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if ready.prompt == "item":
            return [Ended(ready.key, error=ItemError(ErrorCode.GENERATION_FAILED, "the image is not finite"))]
        return [Ended(ready.key, self._draw(ready))]

    @staticmethod
    def _draw(request) -> Sample:
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
        if prompt == "score fault":
            raise RuntimeError("CUDA error: out of its mind")
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
def maker(tmp_path):
    picture(tmp_path)

    def maker(start=lambda: (Networks(), Scorer()), **changes):
        settings = MakerSettings(
            **{
                "locations": Locations(allowed_roots=(str(tmp_path),), base_uri=str(tmp_path)),
                "output": RunOutput(str(tmp_path / "out")),
                "run_id": "run-1",
                "max_picture_side_px": 1000,
                "max_picture_pixels": 100_000,
                "preview_share": 1.0,
                **changes,
            }
        )
        loop = EngineLoop(start, capacity=8)
        return ImageMaker(settings, loop.submit, worker="worker-9"), loop

    return maker


@pytest.fixture
def make(maker):
    def make(items, **changes):
        made, _ = maker(**changes)
        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(made.make, items))

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


@pytest.mark.parametrize(("image_format", "suffix"), [("jpeg", ".jpg"), ("webp", ".webp")])
def test_images_are_stored_in_the_wanted_format(make, tmp_path, image_format, suffix):
    (row,) = make([item(0)], image_format=image_format, image_quality=80)
    assert row.image_uri.endswith(suffix)
    assert Image.open(tmp_path / "out" / row.image_uri).format == image_format.upper()


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
        item(7, prompt="refused"),
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
        ErrorCode.ROW_INVALID,
        ErrorCode.GENERATION_FAILED,
        None,
    ]
    assert rows[2].error_message.startswith("text.png: ")
    assert rows[7].error_message == "not like this"
    assert rows[8].error_message == "the image is not finite"
    assert rows[9].scores == {}


def test_an_engine_that_breaks_condemns_the_process_not_the_items(maker):
    made, loop = maker()
    with pytest.raises(WorkerBroken, match="illegal memory access"):
        made.make(item(0, prompt="fault"))
    with pytest.raises(WorkerBroken, match="illegal memory access"):
        made.make(item(1))
    assert loop.withdraw(1) == 0


def test_everything_that_an_engine_held_breaks_with_it(maker):
    made, _ = maker()
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(made.make, item(index, prompt="wait")) for index in range(2)]
        time.sleep(0.1)
        fault = threads.submit(made.make, item(2, prompt="fault"))
        for future in (*waiting, fault):
            with pytest.raises(WorkerBroken):
                future.result(10)


def test_a_device_that_fails_while_scoring_condemns_the_process(maker):
    made, _ = maker()
    with pytest.raises(WorkerBroken, match="out of its mind"):
        made.make(item(0, prompt="score fault"))


def test_an_engine_that_cannot_start_says_why():
    def start():
        raise ConfigurationError("model: there is none")

    with pytest.raises(ConfigurationError, match="there is none"):
        EngineLoop(start, capacity=1)


def test_items_that_were_hardly_begun_can_be_withdrawn(maker):
    made, loop = maker()
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(made.make, item(index, prompt="wait")) for index in range(3)]
        time.sleep(0.2)
        assert loop.withdraw(2) == 2
        done, _ = wait(waiting, 10, FIRST_COMPLETED)
        assert all(future.result() is None for future in done)
        assert loop.withdraw(5) == 1
    assert [future.result() for future in waiting] == [None] * 3
    assert made.make(item(3)).status == "done"


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


def test_seconds_are_the_items_own(maker):
    made, _ = maker()
    row = made.make(item(0))
    counts = made.counts()
    assert 0 < row.seconds <= counts["seconds.read"] + counts["seconds.store"] + 0.1


def test_shares_decide_what_is_made(maker, tmp_path, tiny_model):
    """All of the second picture is the second picture alone; half of both is neither."""
    sampler = SamplerConfig(num_steps=2, mode="full_injection", guidance_scale=1.0)
    both = ("a.png", picture(tmp_path, "b.png", colour=(0, 200, 90)))
    items = [
        item(0, subjects=both[1:]),
        item(1, subjects=both, subject_mix=(0.0, 1.0)),
        item(2, subjects=both, subject_mix=(0.5, 0.5)),
        item(3, subjects=both),
    ]
    made, _ = maker(lambda: (load_engine(tiny_model, sampler, EngineLimits(num_slots=1)), None))
    images = [row.image_sha256 for row in map(made.make, items)]
    assert images[0] == images[1]
    assert len(set(images)) == 3
