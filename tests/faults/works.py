"""The kinds of runs that faults happen to: a catalog, subject features, training."""

import hashlib
import os
import subprocess
import tempfile
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from flows.stack.settings import BUCKET
from tasks.catalog.results import ResultRow
from tasks.storage import OutputFolder, RunOutput
from tasks.storage.ledger import ResultsLedger
from tests.faults.site import Damage, Site, Work
from tests.features.pairs_files import make_row, write_pairs
from tests.run.catalogs import write_catalog
from tests.tiny import build_tiny_stack
from tests.training.stage import CONFIG, MONITORING, Stored


def on(site: Site, **options: Any) -> dict[str, Any]:
    """The stack's Ray, with holds that end soon after their holder."""
    return {"address": site.stack.ray_address, "num_workers": site.stack.num_nodes, "lease_ttl_s": 10, **options}


class CatalogWork(Work):
    """Items whose images cost 0.2 s each. failed: of them, items that are meant to fail; prompts: of single items."""

    name, flow, actor = "catalog", "personalize_catalog", "ray::DoomedWorker"
    entrypoint = "tests/faults/light_flow.py:personalize_catalog"
    inject_at = 8

    def __init__(self, num_items: int = 160, prompts: dict[int, str] | None = None, failed: int = 0) -> None:
        self.whole, self.prompts, self.failed = num_items, prompts, failed

    def parameters(self, site: Site, output_uri: str, *, again: bool = False) -> dict[str, Any]:
        name = f"{self.whole}-{len(self.prompts or ())}"
        catalog = f"{BUCKET}/faults/{name}/catalog.csv"
        if not site.filesystem.exists(catalog):
            for file in write_catalog(site.folder / name, self.whole, self.prompts).parent.iterdir():
                site.filesystem.pipe_file(f"{BUCKET}/faults/{name}/{file.name}", file.read_bytes())
        pool = {"num_slots": 2, "num_ahead": 1, "shard_size": 4, "flush_interval_s": 0.5, "grace_period_s": 10}
        return {
            "inputs": {"catalog_uri": f"s3://{catalog}", "output_uri": output_uri, "retry_failed": again},
            "model": {"model": "mini"},
            "cluster": on(site, **pool),
        }

    def num_stored(self, site: Site, output_uri: str) -> int:
        return len({row.item_key for row in RunOutput(output_uri, site.locations).read_result_rows()})

    def damage(self, site: Site, output_uri: str) -> Damage:
        """lost: items without a row, or without their image. duplicated: more results of an item than one. damaged:
        images that are not the bytes that were stored.
        """
        output = RunOutput(output_uri, site.locations)
        done = [row for row in ResultsLedger(output).rows() if row.status == "done"]
        stored = Counter(row.item_key for row in output.read_result_rows() if row.status == "done")
        root, filesystem = output.root.path, output.filesystem
        objects = {path.removeprefix(f"{root}/") for path in filesystem.find(root)}
        there = [row for row in done if row.image_uri in objects]
        return Damage(
            lost=self.whole - self.failed - len(there),
            duplicated=stored.total() - len(stored),
            damaged=sum(not is_whole(filesystem.cat_file(f"{root}/{row.image_uri}"), row) for row in there),
            left_over=sum(".partial" in path for path in objects),
        )


class SmallDiskWork(CatalogWork):
    """A catalog whose output is a disk of its own, which is full before it is done. Mounting one takes root."""

    name = "catalog on a disk"

    def new_output(self, site: Site) -> str:
        folder = site.folder / f"disk-{len(list(site.folder.glob('disk-*')))}"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], check=True)
        return str(folder)

    def grow(self, output_uri: str) -> None:
        """Makes the disk large enough."""
        subprocess.run(["mount", "-o", "remount,size=50m", output_uri], check=True)


class ShiftedClockWork(CatalogWork):
    """A catalog whose driver has a clock that a file sets, by Debian's libfaketime."""

    name = "catalog with a clock"
    LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.clock = folder / "clock"
        self.set("+0")

    def set(self, offset: str) -> None:
        """Such as +10m."""
        self.clock.write_text(f"{offset}\n")

    @property
    def environment(self) -> dict[str, str]:  # type: ignore[override]
        return {
            "LD_PRELOAD": str(self.LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self.clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


def is_whole(data: bytes, row: ResultRow) -> bool:
    """Whether an image is what its row says, and can be opened."""
    if hashlib.sha256(data).hexdigest() != row.image_sha256:
        return False
    Image.open(BytesIO(data)).load()
    return True


class TinyWork(Work):
    """On a model of the real classes that is tiny, and pairs that lie in the bucket."""

    num_pairs = 0
    pairs_per_shard = 1

    def model(self, site: Site) -> dict[str, Any]:
        folder = site.folder / "tiny"
        if not folder.exists():
            build_tiny_stack(folder)
        return {"model": str(folder), "device": "cpu"}

    def pairs(self, site: Site) -> str:
        root = f"{BUCKET}/faults/pairs-{self.num_pairs}"
        if not site.filesystem.exists(root):
            rows = [make_row(index) for index in range(self.num_pairs)]
            write_pairs(f"s3://{root}", rows, pairs_per_shard=self.pairs_per_shard, locations=site.locations)
        return f"s3://{root}"

    def undisturbed(self, site: Site) -> str:
        """The output of a run that nothing happens to, made once."""
        output_uri = f"s3://{BUCKET}/faults/{self.name}-undisturbed"
        if not site.filesystem.exists(f"{output_uri.removeprefix('s3://')}"):
            state = site.start(self, output_uri).wait_ended(600)
            assert state.is_completed(), state
        return output_uri


class FeatureWork(TinyWork):
    """Shards of features; each is an object that must be, byte for byte, what an undisturbed run stores."""

    name, flow, actor = "features", "precompute_features", "ray::MapWorker"
    entrypoint = "flows/precompute_features.py:precompute_features"
    num_pairs, pairs_per_shard, inject_at = 320, 4, 8
    whole = num_pairs // pairs_per_shard
    _OF_THE_RUN = ("run.json", "lease.json", "plan.parquet")

    def parameters(self, site: Site, output_uri: str, *, again: bool = False) -> dict[str, Any]:
        return {
            "inputs": {"pairs_uri": self.pairs(site), "output_uri": output_uri},
            "model": self.model(site),
            "features": {"batch_size": 2},
            "cluster": on(site),
        }

    def num_stored(self, site: Site, output_uri: str) -> int:
        output = OutputFolder(output_uri, site.locations)
        return sum(name.endswith(".parquet") for name in output.list("samples"))

    def damage(self, site: Site, output_uri: str) -> Damage:
        wanted, found = self._digests(site, self.undisturbed(site)), self._digests(site, output_uri)
        return Damage(
            lost=len(wanted.keys() - found.keys()),
            duplicated=0,
            damaged=sum(wanted[name] != found[name] for name in wanted.keys() & found.keys()),
            left_over=len(found.keys() - wanted.keys()),
        )

    def _digests(self, site: Site, output_uri: str) -> dict[str, str]:
        root = output_uri.removeprefix("s3://")
        names = [path.removeprefix(f"{root}/") for path in site.filesystem.find(root)]
        return {
            name: hashlib.sha256(site.filesystem.cat_file(f"{root}/{name}")).hexdigest()
            for name in names
            if name not in self._OF_THE_RUN
        }


class TrainingWork(TinyWork):
    """Steps; the final weights must be, bit for bit, those of an undisturbed run, and each step be counted once."""

    name, flow, actor = "training", "train_adapter", "ray::RayTrainWorker"
    entrypoint = "flows/train_adapter.py:train_adapter"
    num_pairs, pairs_per_shard = 20, 10
    whole, inject_at = 240, 40

    def parameters(self, site: Site, output_uri: str, *, again: bool = False) -> dict[str, Any]:
        optimizer = CONFIG["optimizer"].model_dump(mode="json")
        return {
            "inputs": {
                "features_uri": self._features(site),
                "output_uri": output_uri,
                "adapters_uri": f"{output_uri}/adapters",
                "name": "faults",
            },
            "model": self.model(site),
            "training": {**CONFIG, "optimizer": optimizer, "num_steps": self.whole},
            "monitoring": {**MONITORING, "checkpoint_every": 20, "validate_every": 0},
            "cluster": {**on(site, max_failures=5), "num_workers": 1},
        }

    def _features(self, site: Site) -> str:
        store = f"s3://{BUCKET}/faults/training-features"
        if not site.filesystem.exists(store.removeprefix("s3://")):
            from tests.features.stage import Stage

            Stage(self.pairs(site), store, self.model(site)["model"], locations=site.locations).make_here()
        return store

    def num_stored(self, site: Site, output_uri: str) -> int:
        steps = self._stored(site, output_uri).steps if self._root(site, output_uri) else []
        return steps[-1] if steps else 0

    def damage(self, site: Site, output_uri: str) -> Damage:
        wanted, found = self._stored(site, self.undisturbed(site)), self._stored(site, output_uri)
        steps = found.log.column("step").to_pylist()
        differs = {name for name, tensor in wanted.final.items() if not (tensor == found.final[name]).all()}
        return Damage(
            lost=self.whole - len(set(steps)),
            duplicated=len(steps) - len(set(steps)),
            damaged=len(differs),
            left_over=0,
        )

    def _stored(self, site: Site, output_uri: str) -> Stored:
        return Stored(OutputFolder(self._root(site, output_uri), site.locations))

    def _root(self, site: Site, output_uri: str) -> str:
        """The folder of the one configuration below an output; empty before there is one."""
        root = output_uri.removeprefix("s3://")
        if not site.filesystem.exists(root):
            return ""
        folders = site.filesystem.ls(root, detail=False, refresh=True)
        return next((f"s3://{folder}" for folder in folders if not folder.endswith("/adapters")), "")


WORKS: dict[str, Work] = {
    "catalog": CatalogWork(),
    "long catalog": CatalogWork(600),
    "poisoned catalog": CatalogWork(prompts={12: "a cup [kill]"}, failed=1),
    "features": FeatureWork(),
    "training": TrainingWork(),
}
if os.geteuid() == 0:
    WORKS["catalog on a disk"] = SmallDiskWork()
if ShiftedClockWork.LIBRARY.exists():
    WORKS["catalog with a clock"] = ShiftedClockWork(Path(tempfile.mkdtemp(prefix="ezigen-clock-")))
