"""Computing features: subjects per second, what goes beside the networks, two workers against one, and memory.

    python bench/features.py [--pairs 256] [--factor 8] [--model mini] [--plan-pairs 100000] [--real-shapes 2]

Each measurement runs in a process of its own, so that its peak memory is its own; with Ray, the rate is that of the
time in which workers work. Memory is shown at two sizes: of the set, of one shard, and of a plan.

--real-shapes N encodes N subjects and targets with networks of SD2.1-base's configuration and random weights, through
the stage that a run uses. It takes about 8 GiB of memory, 2.6 GB of disk and, on a core, a minute for each; without it
nothing of that is done.
"""

import argparse
import dataclasses
import hashlib
import io
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from ezigen.config import FeatureConfig, FeatureInputs, RayConfig, StackConfig
from ezigen.mini import weights_folder
from ezigen.models import to_pixels
from tasks.features.build import FeatureWork
from tasks.features.encoding import FeatureEncoder
from tasks.features.fp8 import dequantize, quantize
from tasks.features.identity import subject_id
from tasks.features.manifest import write_index, write_store
from tasks.features.model_shape import ModelShape
from tasks.features.plan import FeaturePlan, plan_features
from tasks.features.reader import FeatureStore
from tasks.features.writer import ShardFiles
from tasks.pairs.layout import pairs_path, shard_name, to_parquet
from tasks.pairs.manifest import PairsManifest
from tasks.pairs.schema import PAIRS_SCHEMA
from tasks.sharding import ShardReport, run_shards, store_file
from tasks.storage import OutputFolder

PAIRS_PER_SHARD = 32
ROWS_PER_GROUP = 64
CLASSES = ("cup", "shoe", "chair", "lamp", "dog")

# ---- pairs


def write_pairs(folder: Path, num_pairs: int, pairs_per_shard: int, rows: Callable[[int, int], pa.Table]) -> None:
    """A finished set of pairs; `rows` makes those from one number to another."""
    output, reports = OutputFolder(str(folder)), []
    for index, start in enumerate(range(0, num_pairs, pairs_per_shard)):
        stop = min(start + pairs_per_shard, num_pairs)
        groups = [rows(at, min(at + ROWS_PER_GROUP, stop)) for at in range(start, stop, ROWS_PER_GROUP)]
        shard = shard_name(0, index)
        file = store_file(output, pairs_path(shard), to_parquet(groups, PAIRS_SCHEMA, {}), stop - start)
        reports.append(ShardReport(shard, stop - start, files=(file,)))
    PairsManifest("bench", tuple(reports)).store(output)


def with_pictures(size_px: int) -> Callable[[int, int], pa.Table]:
    """Rows whose pictures are smooth noise, as JPEG; no two are equal."""

    def draw(seed: int) -> bytes:
        coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        picture = Image.fromarray(coarse).resize((size_px, size_px), Image.Resampling.BICUBIC)
        picture.save(buffer, "JPEG", quality=95, subsampling=0)
        return buffer.getvalue()

    def rows(start: int, stop: int) -> pa.Table:
        return pa.Table.from_pylist(
            [_row(n, draw(2 * n), draw(2 * n + 1), size_px) for n in range(start, stop)], PAIRS_SCHEMA
        )

    return rows


def without_pictures(size_px: int) -> Callable[[int, int], pa.Table]:
    """Rows that only a plan reads; a third of the subjects and half of the targets occur more than once."""
    (one,) = pa.Table.from_pylist([_row(0, b"", b"", size_px)], PAIRS_SCHEMA).to_batches()

    def rows(start: int, stop: int) -> pa.Table:
        numbers = range(start, stop)
        table = pa.Table.from_batches([one]).take(pa.array(np.zeros(len(numbers), np.int64)))
        changes = {
            "subject_sha256": [f"{n - n % 3 // 2:064x}" for n in numbers],
            "target_sha256": [f"{n // 2:064x}" for n in numbers],
            "subject_class": ["cup"] * len(numbers),
            "caption": [f"a photo of a cup number {n} in the snow" for n in numbers],
        }
        for name, values in changes.items():
            at = PAIRS_SCHEMA.get_field_index(name)
            table = table.set_column(at, PAIRS_SCHEMA.field(at), pa.array(values))
        return table

    return rows


def _row(n: int, subject: bytes, target: bytes, size_px: int) -> dict[str, Any]:
    box = [0.0, 0.0, float(size_px), float(size_px)]
    return {
        "pair_id": f"coco/train/{n:09d}/1",
        "source": "coco",
        "group_id": f"coco/train/{n:09d}",
        "subject_image_id": f"train/{n}",
        "target_image_id": f"train/{n}",
        "subject_class": CLASSES[n % len(CLASSES)],
        "caption": f"a photo of a {CLASSES[n % len(CLASSES)]} number {n} in the snow",
        "subject": subject,
        "subject_format": "jpeg",
        "subject_sha256": hashlib.sha256(subject).hexdigest(),
        "subject_mask": b"",
        "mask_sha256": "",
        "target": target,
        "target_format": "jpeg",
        "target_sha256": hashlib.sha256(target).hexdigest(),
        "target_uri": "",
        "target_source_sha256": "",
        **dict.fromkeys(("target_crop", "subject_box", "target_box"), box),
        "flipped": False,
        "mask_share": 0.1,
        "frame_distance": None,
        "size_px": size_px,
    }


# ---- measurements, each in a process of its own


def make_plan(pairs: str, output: str, model: str, batch_size: int = 8) -> FeaturePlan:
    """The plan of a run."""
    inputs, config = FeatureInputs(pairs_uri=pairs, output_uri=output), FeatureConfig(batch_size=batch_size)
    return plan_features(inputs, config, StackConfig(model=model, device="cpu"), OutputFolder(output))


class MeasuredWork(FeatureWork):
    """Says how much memory its process has ever used, and how much CPU time the shard took."""

    def make(self, shard: str) -> ShardReport:
        """The shard, with two more counts."""
        started = time.process_time()
        report = super().make(shard)
        cpu_us = int(1e6 * (time.process_time() - started))
        return dataclasses.replace(report, counts={**report.counts, "peak_kib": peak_kib(), "cpu_us": cpu_us})


def peak_kib() -> int:
    """Of this process, ever."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def make_work(plan: FeaturePlan, output: str) -> MeasuredWork:
    """The work of a run."""
    return MeasuredWork(plan.pairs, OutputFolder(output), plan.identity, plan.config, plan.model, plan.owned)


def run(pairs: str, output: str, model: str, num_workers: str) -> dict[str, float]:
    """All shards on Ray."""
    plan = make_plan(pairs, output, model)
    ended: list[tuple[float, ShardReport]] = []
    run_shards(
        make_work(plan, output),
        plan.to_do,
        cluster=RayConfig(num_workers=int(num_workers), accelerator="cpu"),
        on_report=lambda report: ended.append((time.perf_counter(), report)),
    )
    begun = min(at - report.seconds for at, report in ended)
    return {
        "subjects": plan.num_subjects,
        "seconds": max(at for at, _ in ended) - begun,
        "cpu_ms": sum(report.counts["cpu_us"] for _, report in ended) / 1e3 / plan.num_subjects,
        "driver_mib": peak_kib() / 2**10,
        "worker_mib": max(report.counts["peak_kib"] for _, report in ended) / 2**10,
        "num_bytes": sum(file.num_bytes for _, report in ended for file in report.files),
    }


def make_here(pairs: str, output: str, model: str) -> dict[str, float]:
    """All shards in this process, and then the same pictures and texts through the networks alone."""
    torch.set_num_threads(1)
    plan = make_plan(pairs, output, model)
    work = make_work(plan, output)
    work.open()
    started, started_cpu = time.perf_counter(), time.process_time()
    for shard in plan.shards:
        work.make(shard)
    seconds, cpu_s, peak = time.perf_counter() - started, time.process_time() - started_cpu, peak_kib()
    return {
        "subjects": plan.num_subjects,
        "seconds": seconds,
        "cpu_s": cpu_s,
        "worker_mib": peak / 2**10,
        "network_cpu_s": _network_seconds(plan, FeatureEncoder.load(plan.model, plan.identity, plan.config.batch_size)),
    }


def _network_seconds(plan: FeaturePlan, encoder: FeatureEncoder) -> float:
    """CPU time in the networks for all pairs; the pictures are decoded before."""
    seconds = 0.0
    for shard in plan.shards:
        for rows in plan.pairs.read_rows(shard, ["subject", "target", "subject_class", "caption"]):
            columns = {name: rows.column(name).to_pylist() for name in rows.schema.names}
            for at in range(0, len(rows), plan.config.batch_size):
                part = slice(at, at + plan.config.batch_size)
                subjects, targets = (
                    [to_pixels(Image.open(io.BytesIO(data), formats=("PNG",))) for data in columns[name][part]]
                    for name in ("subject", "target")
                )
                started = time.process_time()
                encoder.encode_subjects(subjects, columns["subject_class"][part])
                encoder.encode_targets(targets)
                encoder.encode_texts(columns["caption"][part])
                seconds += time.process_time() - started
    return seconds


def plan_alone(pairs: str, output: str, model: str) -> dict[str, float]:
    """Who stores what."""
    started = time.perf_counter()
    plan = make_plan(pairs, output, model)
    return {
        "pairs": plan.num_pairs,
        "seconds": time.perf_counter() - started,
        "driver_mib": peak_kib() / 2**10,
    }


def write_sd21(folder: Path) -> None:
    """A stack of SD2.1-base's configuration with random weights in fp16, and the embedded model's tokenizer."""
    # Slow to import, and only this needs them by name.
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: PLC0415
    from transformers import CLIPTextConfig, CLIPTextModel  # noqa: PLC0415

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    )
    unet.half().save_pretrained(folder / "unet")
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    vae.half().save_pretrained(folder / "vae")
    text = CLIPTextConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu"
    )
    CLIPTextModel(text).half().save_pretrained(folder / "text_encoder")
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(Path(weights_folder()) / name, folder / name)
    shutil.copy(Path(weights_folder()) / "model_index.json", folder)
    config = folder / "tokenizer/tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 77}))


def make_at_real_shapes(pairs: str, output: str, model: str) -> dict[str, Any]:
    """Subjects and targets one by one through the stage, and what is read back against the encoder's own output."""
    plan = make_plan(pairs, output, model, batch_size=1)
    work = make_work(plan, output)
    work.open()
    started, started_cpu = time.perf_counter(), time.process_time()
    reports = [work.make(shard) for shard in plan.shards]
    seconds, cpu_s, peak = time.perf_counter() - started, time.process_time() - started_cpu, peak_kib()
    folder = OutputFolder(output)
    write_store(folder, plan.identity)
    shards = {one.shard: ShardFiles(one.shard, one.counts["pairs"], one.files) for one in reports}
    write_index(folder, plan.identity, shards)
    (row,) = next(plan.pairs.read_rows(plan.shards[0], ["subject", "subject_class", "subject_sha256"])).to_pylist()[:1]
    encoder = FeatureEncoder.load(plan.model, plan.identity, 1)
    own = encoder.encode_subjects(
        [to_pixels(Image.open(io.BytesIO(row["subject"]), formats=("PNG",)))], [row["subject_class"]]
    )
    found = FeatureStore.open(output).read_subject(subject_id(row["subject_sha256"], row["subject_class"]))
    shape = ModelShape.of(model)
    return {
        "subjects": plan.num_subjects,
        "cpu_s": cpu_s / plan.num_subjects,
        "clock_s": seconds / plan.num_subjects,
        "flop": shape.cost.subject_flop + shape.cost.vae_flop,
        "peak_mib": peak / 2**10,
        "bytes": found.num_values * 2,
        "equal": all(torch.equal(found.tokens[name], own.tokens[name].half()) for name in own.tokens),
        "fp8_error": {name: _fp8_error(tokens) for name, tokens in own.tokens.items()},
    }


def _fp8_error(tokens: torch.Tensor) -> float:
    """Root mean square of what fp8 changes, as a share of that of the numbers."""
    found = dequantize(*quantize(tokens), torch.float32)
    return float((found - tokens).square().mean().sqrt() / tokens.square().mean().sqrt())


MEASUREMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    "run": run,
    "here": make_here,
    "plan": plan_alone,
    "real shapes": make_at_real_shapes,
}


def measure(name: str, *arguments: object) -> dict[str, Any]:
    """A function's figures in a process of its own."""
    command = [sys.executable, __file__, "--measure", name, *map(str, arguments)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return figures


# ---- what is shown


def compare_workers(folder: Path, model: str, repeats: int) -> dict[str, float]:
    """One worker and two, in turn; returns a run of two."""
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for repeat in range(repeats):
        for num_workers, results in found.items():  # in turn, so that a busy neighbour disturbs both
            output = folder / f"store-{num_workers}-{repeat}"
            results.append(measure("run", folder / "pairs", output, model, num_workers))
            one = results[-1]
            rate = one["subjects"] / one["seconds"]
            print(
                f"{num_workers} workers: {rate:6.1f} subjects/s, {one['cpu_ms']:.1f} ms of CPU per subject", flush=True
            )
    rates = {n: statistics.median(one["subjects"] / one["seconds"] for one in results) for n, results in found.items()}
    # One worker takes more than a core: it reads and writes beside the networks.
    spent = {n: statistics.median(one["cpu_ms"] for one in results) for n, results in found.items()}
    print(
        f"two workers against one: {rates[2] / rates[1]:.2f}x on the clock, CPU per subject "
        f"{spent[2] / spent[1]:.2f}x; wanted: 1.8x and 1x, where each has a core of its own",
        flush=True,
    )
    return found[2][0]


def compare_parts(folder: Path, model: str, repeats: int) -> None:
    """The stage in one process against the networks alone."""
    shares = []
    for repeat in range(repeats):
        one = measure("here", folder / "pairs", folder / f"here-{repeat}", model)
        shares.append(1 - one["network_cpu_s"] / one["cpu_s"])
        spent, networks = (1e3 * one[name] / one["subjects"] for name in ("cpu_s", "network_cpu_s"))
        print(
            f"one process: {one['subjects'] / one['seconds']:6.1f} subjects/s; {spent:.1f} ms of CPU per subject, "
            f"{networks:.1f} of them in the networks",
            flush=True,
        )
    share = statistics.median(shares)
    print(f"CPU time beside the networks (decoding, casting, checksums, writing): {share:.1%}; wanted: at most 3%")


def show_growth(what: str, figures: Iterator[tuple[str, dict[str, float]]], names: tuple[str, ...]) -> None:
    """Peaks at two sizes."""
    (small_name, small), (large_name, large) = figures
    for name in names:
        print(
            f"{what}: {small_name} {small[name]:7.0f} MiB, {large_name} {large[name]:7.0f} MiB "
            f"({large[name] / small[name]:.2f}x, wanted: 1) {name.removesuffix('_mib')}",
            flush=True,
        )


def compare(folder: Path, options: argparse.Namespace) -> None:
    """Prints everything."""
    model, num_pairs, factor = options.model, options.pairs, options.factor
    size_px = ModelShape.of(model).size_px
    pictures = with_pictures(size_px)
    write_pairs(folder / "pairs", num_pairs, PAIRS_PER_SHARD, pictures)
    write_pairs(folder / "many", num_pairs * factor, PAIRS_PER_SHARD, pictures)
    print(f"model {model}, {num_pairs:,} pairs of {size_px} px, on cores alone", flush=True)
    compare_parts(folder, model, options.repeats)
    small = compare_workers(folder, model, options.repeats)
    print(f"{small['num_bytes'] / small['subjects'] / 1e3:.0f} kB are stored per subject")

    large = measure("run", folder / "many", folder / "store-many", model, 2)
    sizes = (f"{num_pairs:,} pairs", f"{num_pairs * factor:,} pairs")
    show_growth("set of", zip(sizes, (small, large), strict=True), ("driver_mib", "worker_mib"))

    shards = [PAIRS_PER_SHARD, PAIRS_PER_SHARD * factor]
    for size in shards:
        write_pairs(folder / f"shard-{size}", size, size, pictures)
    found = [measure("here", folder / f"shard-{size}", folder / f"store-shard-{size}", model) for size in shards]
    show_growth("shard of", zip((f"{size:,} pairs" for size in shards), found, strict=True), ("worker_mib",))

    plans = [options.plan_pairs, options.plan_pairs * factor]
    for size in plans:
        write_pairs(folder / f"plan-{size}", size, 2048, without_pictures(size_px))
    found = [measure("plan", folder / f"plan-{size}", folder / f"store-plan-{size}", model) for size in plans]
    show_growth("plan of", zip((f"{size:,} pairs" for size in plans), found, strict=True), ("driver_mib",))
    grown = (found[1]["driver_mib"] - found[0]["driver_mib"]) * 2**20 / (plans[1] - plans[0])
    print(f"plan: {found[1]['seconds']:.1f} s for {plans[1]:,} pairs, {grown:.0f} bytes per further pair")


def show_real_shapes(folder: Path, num_subjects: int) -> None:
    """SD2.1-base's shapes through the real encoder."""
    write_sd21(folder / "sd21")
    write_pairs(folder / "real", num_subjects, PAIRS_PER_SHARD, with_pictures(512))
    one = measure("real shapes", folder / "real", folder / "store-real", folder / "sd21")
    print(
        f"SD2.1-base's configuration, random weights, fp32: {one['cpu_s']:.1f} s of CPU per subject with its target "
        f"({one['clock_s']:.1f} s by the clock, {one['flop'] / one['cpu_s'] / 1e9:.0f} GFLOP/s), peak "
        f"{one['peak_mib']:.0f} MiB"
    )
    verdict = "bit-equal" if one["equal"] else "NOT EQUAL"
    print(f"  {one['bytes'] / 1e6:.1f} MB per subject (wanted: 23.1); read back against the encoder: {verdict}")
    errors = one["fp8_error"]
    print(f"  fp8 error by block: {min(errors.values()):.2%} to {max(errors.values()):.2%} of the root mean square")


def main() -> None:
    """Measures in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--factor", type=int, default=8)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--plan-pairs", type=int, default=100_000)
    parser.add_argument("--real-shapes", type=int, default=0, metavar="N", help="subjects of SD2.1-base's shapes")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, *arguments = options.measure
        print(json.dumps(MEASUREMENTS[name](*arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="ezigen-bench-") as folder:
        if options.real_shapes:
            show_real_shapes(Path(folder), options.real_shapes)
        else:
            compare(Path(folder), options)


if __name__ == "__main__":
    main()
