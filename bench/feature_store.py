"""Reading a feature store against reading the same bytes from plain files, and what each policy weighs.

    python bench/feature_store.py [--subjects 16] [--repeats 9]

Subjects have the shapes of SD2.1-base at 512 px and random numbers. Both sides read from a warm page cache, in one
thread and in turns, and drop what they read before they read on. Ratios are of medians, of CPU time (which neighbours
disturb less; with a warm cache it is all the time there is) and of wall-clock time. What a cold disk or a network costs
is the disk's and the network's: both sides move the same bytes.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lines import show

from ezigen.config import FeatureConfig
from ezigen.subject import SubjectFeatures
from tasks.features import (
    BlockLayout,
    EncodingCost,
    FeatureIdentity,
    FeatureShardWriter,
    FeatureStore,
    ModelShape,
    estimate,
    find_done_shards,
    subject_id,
    write_index,
    write_store,
)
from tasks.features.fp8 import error_bound
from tasks.storage import OutputFolder

# The blocks of SD2.1-base: how often, tokens, channels; in the order of registration.
_SHAPES = [
    ("down_blocks.0", 2, 4096, 320), ("down_blocks.1", 2, 1024, 640), ("down_blocks.2", 2, 256, 1280),
    ("up_blocks.1", 3, 256, 1280), ("up_blocks.2", 3, 1024, 640), ("up_blocks.3", 3, 4096, 320),
    ("mid_block", 1, 64, 1280),
]  # fmt: skip
BLOCKS = tuple(
    BlockLayout(f"{place}.attentions.{index}.transformer_blocks.0", num_tokens, num_channels)
    for place, count, num_tokens, num_channels in _SHAPES
    for index in range(count)
)
SHAPE = ModelShape(512, (4, 64, 64), (77, 1024), BLOCKS, EncodingCost(1.12e12, 0.804e12, 0.045e12))
SHARD = "r0-00000"
BATCH_SIZE = 4
MIN_SHARE = 0.8


def write(
    folder: Path, num_subjects: int, *, dtype: str = "fp16", tokens: str = "all", row_group_mib: int = 0
) -> float:
    """A store of random subjects with a disc of 30 % as their mask; returns the seconds that writing took."""
    output = OutputFolder(str(folder))
    identity = FeatureIdentity.of("0" * 32, SHAPE, FeatureConfig(dtype=dtype, tokens=tokens), network_dtype="fp32")
    write_store(output, identity, row_group_mib=row_group_mib)
    seconds = 0.0
    ids = [subject_id(f"{index:064x}", "cup") for index in range(num_subjects)]
    with FeatureShardWriter(output, identity, SHARD, row_group_mib=row_group_mib) as writer:
        for one in ids:
            features, started = random_features(), time.perf_counter()
            writer.add_subjects([one], ["cup"], features, [disc(512, 0.3)])
            seconds += time.perf_counter() - started
        started = time.perf_counter()
        shard = writer.close(pa.table(dict.fromkeys(("pair_id", "subject_id", "target_id", "text_id"), ids)))
        write_index(output, identity, {SHARD: shard})
    assert find_done_shards(output, identity) == {SHARD: shard}
    return seconds + time.perf_counter() - started


def random_features() -> SubjectFeatures:
    """Tokens as LayerNorm leaves them: about normal, in fp16."""
    return SubjectFeatures({b.name: torch.randn(1, b.num_tokens, b.num_channels).half() for b in BLOCKS})


def disc(side: int, share: float) -> torch.Tensor:
    """A mask (side, side) with a disc of that share of the area."""
    at = torch.arange(side) - side / 2
    return (at[:, None] ** 2 + at[None] ** 2) <= share * side**2 / torch.pi


def compare(
    what: str, baseline: Callable[[], object], candidates: dict[str, Callable[[], object]], repeats: int
) -> None:
    """Prints each candidate's speed as a share of the baseline's, all of them run in turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ("", *candidates)}
    for round_ in range(repeats + 1):
        for name, run in {"": baseline, **candidates}.items():
            started, started_cpu = time.perf_counter(), time.process_time()
            run()
            if round_:  # the first round warms the page cache
                times[name].append((time.process_time() - started_cpu, time.perf_counter() - started))
    medians = {name: [statistics.median(column) for column in zip(*both, strict=True)] for name, both in times.items()}
    plain_cpu, plain_wall = medians.pop("")
    for name, (cpu, wall) in medians.items():
        wanted = f"ratio >= {MIN_SHARE:.2f}"
        show(f"{what}, {name.strip()}: reads per CPU second", 1 / cpu, "1/s", 1 / plain_cpu, wanted=wanted)
        print(
            f"  {name:40s} {plain_cpu / cpu:5.2f} of a plain file's speed by CPU time, {plain_wall / wall:.2f} by the "
            f"clock; wanted: at least {MIN_SHARE:.2f}"
        )


def compare_single(folder: Path, stores: dict[str, FeatureStore], repeats: int) -> None:
    """One subject at a time in random order."""
    store = next(iter(stores.values()))
    ids = store.subject_ids()
    paths = {one: _plain_copy(folder, store, one) for one in ids}
    print(f"one subject ({paths[ids[0]].stat().st_size / 1e6:.1f} MB), random order")
    order = [random.choice(ids) for _ in range(2 * len(ids))]

    def read_plain() -> None:
        for one in order:
            paths[one].read_bytes()

    def read(stored: FeatureStore) -> Callable[[], None]:
        def run() -> None:
            for one in order:
                stored.read_subject(one)

        return run

    compare("one subject", read_plain, {name: read(stored) for name, stored in stores.items()}, repeats)


def compare_sequential(stores: dict[str, FeatureStore], repeats: int) -> None:
    """A whole shard, in batches."""
    path = _shard_path(next(iter(stores.values())))
    print(f"a shard in order ({path.stat().st_size / 1e6:.0f} MB), batches of {BATCH_SIZE}")
    chunk = BATCH_SIZE * path.stat().st_size // len(next(iter(stores.values())))

    def read_plain() -> None:
        with path.open("rb", buffering=0) as file:
            while file.read(chunk):
                pass

    def read(stored: FeatureStore) -> Callable[[], None]:
        def run() -> None:
            for batch in stored.iterate(batch_size=BATCH_SIZE):
                batch.features.batch_size  # noqa: B018

        return run

    def read_with_pyarrow() -> None:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            file.read_row_group(group, use_threads=False)

    candidates = {name: read(stored) for name, stored in stores.items()}
    compare("in order", read_plain, candidates | {"pyarrow, row group by row group": read_with_pyarrow}, repeats)


def _plain_copy(folder: Path, store: FeatureStore, one: str) -> Path:
    """The bytes of one stored subject as a file."""
    path = folder / f"{one}.bin"
    features = store.read_subject(one)
    path.write_bytes(b"".join(tokens.numpy().tobytes() for tokens in features.tokens.values()))
    return path


def _shard_path(store: FeatureStore) -> Path:
    return Path(store.output.path(f"subjects/{SHARD}.parquet"))


def print_sizes(folder: Path, num_subjects: int) -> None:
    """Bytes per subject, stored and estimated, for every policy, and what fp8 loses."""
    print("bytes per subject, 30 % foreground")
    for dtype in ("fp16", "fp8"):
        for tokens in ("all", "foreground"):
            at = folder / f"{dtype}-{tokens}"
            seconds = write(at, num_subjects, dtype=dtype, tokens=tokens)
            store = FeatureStore.open(str(at))
            size = _shard_path(store).stat().st_size / num_subjects
            planned = estimate(1, 0, 0, store.identity, cost=SHAPE.cost)
            print(
                f"  {dtype} {tokens:10s} {size / 1e6:5.2f} MB (planned {planned.total_bytes / 1e6:.2f}), written at "
                f"{num_subjects * size / seconds / 1e9:.2f} GB/s; break-even on an H200 "
                f"{(planned.break_even_from_picture or 0) / 1e9:.1f} GB/s from pictures, "
                f"{(planned.break_even_from_latent or 0) / 1e9:.1f} from latents"
            )
    tokens = torch.randn(1024, 640)
    print(f"  fp8's bound on the error of a number of size 1: {error_bound(tokens)[tokens.abs() > 0.99].min():.3f}")


def main() -> None:
    """Writes stores into a temporary folder, reads them, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="ezigen-bench-") as folder:
        single, gathered = Path(folder) / "single", Path(folder) / "gathered"
        write(single, options.subjects)
        write(gathered, options.subjects, row_group_mib=128)
        store = FeatureStore.open(str(single))
        checked = FeatureStore.open(str(single), check=True)
        groups = FeatureStore.open(str(gathered))
        rows = {"a row group per subject": store, "the same, checksums compared": checked}
        scans = "row groups of 128 MiB (through Parquet)"
        compare_single(Path(folder), {**rows, scans: groups}, options.repeats)
        compare_sequential({**rows, scans: groups}, options.repeats)
        print_sizes(Path(folder), min(4, options.subjects))


if __name__ == "__main__":
    main()
