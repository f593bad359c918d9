"""A set of pairs, feature stores of the embedded model, and a catalog's output, made in this process without Ray."""

from pathlib import Path

import pytest
import torch

from ezigen.config import CocoSelection, PairConfig, VideoSelection
from tasks.datasets.drawing import PictureLimits
from tasks.pairs.build import PairWork
from tasks.pairs.manifest import PairsManifest
from tasks.pairs.plan import open_data_sets, plan_pairs
from tasks.storage import OutputFolder, RunRecord
from tests.features.stage import Stage
from tests.pairs_run.conftest import World, world

__all__ = ["world"]

torch.set_num_threads(1)

CONFIG = PairConfig(
    seed=1,
    size_px=64,
    pairs_per_shard=5,
    coco=CocoSelection(min_area_px=100),
    youtube_vis=VideoSelection(min_mask_share=0.05),  # some frames are refused
)


def build_pairs_here(world: World, folder: Path, config: PairConfig = CONFIG) -> Path:
    """What build_pairs stores in its first round, with run.json."""
    inputs = world.inputs(folder, num_coco_pairs=10, num_youtube_vis_pairs=6)
    output = OutputFolder(inputs.output_uri)
    plan = plan_pairs(inputs, config, output)
    locations = {data.source: data.reader.locations for data in open_data_sets(inputs, None)}
    work = PairWork(output, plan.identity, config, PictureLimits(), locations)
    reports = tuple(work.make(shard) for shard in plan.shards)
    PairsManifest(plan.identity, reports).store(output)
    output.write_run(RunRecord("run-1", "finished", "2026-11-22T00:00:00+00:00", flow="build_pairs"))
    return folder


def make_store_here(pairs: Path, folder: Path, **config) -> Path:
    """What precompute_features stores with the embedded model, with run.json."""
    stage = Stage(pairs, folder, "mini", **config)
    stage.make_here()
    inputs = {"pairs_uri": str(pairs), "output_uri": str(folder)}
    stage.output.write_run(
        RunRecord("run-2", "finished", "2026-11-22T00:00:00+00:00", flow="precompute_features", inputs=inputs)
    )
    return folder


@pytest.fixture(scope="session")
def pairs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pairs_here(world, tmp_path_factory.mktemp("inspect") / "pairs")


@pytest.fixture(scope="session")
def store(pairs: Path) -> Path:
    return make_store_here(pairs, pairs.parent / "store")


@pytest.fixture(scope="session")
def foreground_store(pairs: Path) -> Path:
    return make_store_here(pairs, pairs.parent / "foreground", tokens="foreground", dtype="fp8")
