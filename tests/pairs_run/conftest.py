"""Small data sets of the miniature world, and runs on them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ezigen.config import CocoSelection, PairConfig, PairInputs, RayConfig
from ezigen.mini.world.coco import write_coco
from ezigen.mini.world.compose import Composer
from ezigen.mini.world.products import make_variants, select_products
from ezigen.mini.world.youtube_vis import write_instances
from tasks.pairs import PairOutcome, PairPlan, plan_pairs, run_pairs
from tasks.storage import OutputFolder

SIDE_PX = 128
CONFIG = PairConfig(seed=3, size_px=256, picture_format="png", pairs_per_shard=6, coco=CocoSelection(min_area_px=100))
"""Large pictures, so that there is time to kill a worker in the middle of its work."""


@dataclass(frozen=True)
class World:
    """Folders of one COCO and one YouTube-VIS."""

    coco: Path
    youtube_vis: Path

    def inputs(self, output: Path | str, **changes) -> PairInputs:
        values = {
            "output_uri": str(output),
            "coco_uri": str(self.coco),
            "youtube_vis_uri": str(self.youtube_vis),
            "num_coco_pairs": 40,
            "num_youtube_vis_pairs": 30,
        }
        return PairInputs(**{**values, **changes})


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("world")
    variants = make_variants(select_products(held_out=False)[:12], side=SIDE_PX, shifts=(0,))
    composer = Composer(variants, SIDE_PX, num_backgrounds=2, seed=1)
    write_coco(composer, folder / "coco", 40, seed=1)
    write_instances(composer, folder / "videos", 6, num_frames=10, seed=1)
    return World(folder / "coco", folder / "videos")


def break_annotations(coco: Path) -> None:
    """Two annotations of a copy of the world name an unknown class, one has no picture's id."""
    path = coco / "annotations/instances_train2014.json"
    content = json.loads(path.read_text())
    large = [entry for entry in content["annotations"] if entry["area"] > 400 and not entry["iscrowd"]]
    for entry in large[:2]:
        entry["category_id"] = 999
    del large[2]["image_id"]
    path.write_text(json.dumps(content))


@dataclass(frozen=True)
class Build:
    """Plan and run, as the flow does."""

    inputs: PairInputs
    config: PairConfig = CONFIG

    @property
    def output(self) -> OutputFolder:
        return OutputFolder(self.inputs.output_uri)

    def plan(self, **options) -> PairPlan:
        return plan_pairs(self.inputs, self.config, self.output, **options)

    def run(self, address: str, num_workers: int = 2, **options) -> PairOutcome:
        return run_pairs(
            self.plan(), self.output, cluster=RayConfig(address=address, num_workers=num_workers), **options
        )


@pytest.fixture(scope="session")
def reference(world, tmp_path_factory, ray_address) -> Path:
    """The output of a run that nothing disturbed, of one worker."""
    folder = tmp_path_factory.mktemp("reference") / "out"
    build = Build(world.inputs(folder))
    outcome = build.run(ray_address, num_workers=1)
    assert (outcome.state, outcome.built) == ("finished", 70)
    return folder


def stored_bytes(folder: Path) -> dict[str, str]:
    """Digest of every object of an output but those that tell of runs."""
    own = {"run.json", "lease.json"}
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in own
    }


def read_pairs(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """All pairs of an output, by shard."""
    return pa.concat_tables([pq.read_table(path, columns=columns) for path in sorted((folder / "pairs").iterdir())])
