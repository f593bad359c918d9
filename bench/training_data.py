"""What the loader alone delivers against what the train step consumes.

    python bench/training_data.py [--shapes mini] [--batch-size 8] [--rounds 5] [--device auto] [--threads 1]

Stores of random numbers, read in random order from a warm page cache; each kind with the step that it feeds: stored
tokens in fp16 or fp8, or latents that the step computes tokens from. Loader and step run in turns, the step on a batch
that is there already; printed are the ratios of medians, which should be 2 or more, and how much of the time a step
waits when it is fed by the loader.

The last lines are for Stable Diffusion 2.1 at 512 px, whose step is too much for a CPU: an H200 at half of its peak
(400 T/s) would take 154 samples/s from stored tokens (2.6 T each) and 118 from latents (3.4 T). On a CPU the loader
also unpacks fp8, which is a GPU's work where there is one. Shapes are those of bench/train_step.py; quarter takes
minutes on a CPU.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import torch
from feature_store import SHAPE as SD21
from lines import show
from train_step import load_shape

from ezigen.config import FeatureConfig, TrainingConfig
from ezigen.models import Stack
from ezigen.subject import SubjectEncoder, SubjectFeatures
from ezigen.training import Learner
from tasks.features import (
    BlockLayout,
    EncodingCost,
    FeatureIdentity,
    FeatureShardWriter,
    ModelShape,
    text_id,
    write_index,
    write_store,
)
from tasks.storage import OutputFolder
from tasks.training.data import TrainingSet
from tasks.training.loader import BatchLoader

KINDS = {
    "fp16": FeatureConfig(dtype="fp16"),
    "fp8": FeatureConfig(dtype="fp8"),
    "latents": FeatureConfig(policy="latents"),
}
WANTED_RATIO = 2.0
H200_FLOP_PER_S = 400e12
SAMPLE_FLOP = {"fp16": 2.6e12, "fp8": 2.6e12, "latents": 3.4e12}
SHARD = "r0-00000"


def shape_of(stack: Stack) -> ModelShape:
    """What the stack's features look like; what they cost is of no interest here."""
    picture = torch.zeros(1, 3, stack.image_size_px, stack.image_size_px, device=stack.device)
    tokens = SubjectEncoder(stack).encode(picture, [""]).tokens
    blocks = tuple(BlockLayout(name, *one.shape[1:]) for name, one in tokens.items())
    text_shape = (stack.tokenizer.model_max_length, stack.text_encoder.config.hidden_size)
    side = stack.unet.config.sample_size
    latent_shape = (stack.unet.config.in_channels, side, side)
    return ModelShape(stack.image_size_px, latent_shape, text_shape, blocks, EncodingCost(0, 0, 0))


def write(folder: Path, shape: ModelShape, config: FeatureConfig, num_pairs: int) -> None:
    """A store of pairs that share nothing."""
    output, identity = OutputFolder(str(folder)), FeatureIdentity.of("0" * 32, shape, config, network_dtype="fp32")
    write_store(output, identity)
    ids = [text_id(str(number)) for number in range(num_pairs)]
    with FeatureShardWriter(output, identity, SHARD) as writer:
        for one in ids:
            if config.policy == "latents":
                writer.add_subject_latents([one], ["cup"], torch.randn(1, *shape.latent_shape))
            else:
                writer.add_subjects([one], ["cup"], random_features(shape.blocks))
            writer.add_targets([one], torch.randn(1, *shape.latent_shape), torch.rand(1, *shape.latent_shape) * 1e-3)
            writer.add_texts([one], ["cup"], torch.zeros(1, shape.text_shape[0]), torch.randn(1, *shape.text_shape))
        columns = dict.fromkeys(("subject_id", "target_id", "text_id"), ids)
        pair_ids = [f"coco/bench/{number}/0" for number in range(num_pairs)]
        shard = writer.close(pa.table({"pair_id": pair_ids, **columns, "source": ["coco"] * num_pairs}))
    write_index(output, identity, {SHARD: shard})


def random_features(blocks: Sequence[BlockLayout]) -> SubjectFeatures:
    """Tokens as LayerNorm leaves them: about normal."""
    return SubjectFeatures({block.name: torch.randn(1, block.num_tokens, block.num_channels) for block in blocks})


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call, until the device has finished."""
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def drain(training_set: TrainingSet, num_steps: int, device: torch.device, num_threads: int) -> None:
    """The loader alone: every batch is dropped as soon as it is there."""
    with BatchLoader(training_set, 0, num_steps, 0, 1, device, num_threads=num_threads) as loader:
        for _ in loader:
            pass


def compare(folder: Path, kind: str, stack: Stack, options: argparse.Namespace) -> float:
    """Prints both speeds of one kind of store and returns their ratio."""
    batch_size, device = options.batch_size, stack.device
    config = TrainingConfig(batch_size=batch_size, precision=options.precision, held_out_share=0.0)
    training_set = TrainingSet.open(str(folder), config)
    learner = Learner(stack, config, num_steps=10_000, t_sub=training_set.identity.t_sub)
    batch = [training_set.read_batch(refs, device) for refs in training_set.step_refs(0)]
    times: dict[str, list[float]] = {"loader": [], "step": []}
    for round_ in range(options.rounds + 1):
        taken = {
            "loader": seconds(lambda: drain(training_set, 8, device, options.threads), device) / 8,
            "step": seconds(lambda: learner.train_step(batch, num_samples=batch_size), device),
        }
        if round_:  # the first one warms up
            for name, value in taken.items():
                times[name].append(value)
    loader_s, step_s = (statistics.median(times[name]) for name in ("loader", "step"))
    with BatchLoader(training_set, 0, options.rounds, 0, 1, device, num_threads=options.threads) as loader:
        total_s = seconds(lambda: [learner.train_step(step, num_samples=batch_size) for step in loader], device)
    print(
        f"  {kind:8s} loader {batch_size / loader_s:8.0f} samples/s, step {batch_size / step_s:7.1f}: ratio "
        f"{step_s / loader_s:6.1f}; fed by it, {100 * loader.waited_s / total_s:.1f} % of the time waiting for data"
    )
    rates = batch_size / loader_s, batch_size / step_s
    show(f"samples per second of the loader, {kind}", rates[0], "1/s", rates[1], wanted=f"ratio >= {WANTED_RATIO:g}")
    return step_s / loader_s


def measure_sd21(folder: Path, kind: str, options: argparse.Namespace, device: torch.device) -> None:
    """Prints the loader's speed at full size."""
    write(folder, SD21, KINDS[kind], options.pairs)
    training_set = TrainingSet.open(str(folder), TrainingConfig(batch_size=4, held_out_share=0.0))
    num_steps = max(1, options.pairs // 4)
    drain(training_set, num_steps, device, options.threads)
    taken = [seconds(lambda: drain(training_set, num_steps, device, options.threads), device) for _ in range(5)]
    rate = 4 * num_steps / statistics.median(taken)
    size = sum(file.num_bytes for shard in training_set.store.shards for file in shard.files) / options.pairs
    print(
        f"  {kind:8s} loader {rate:6.0f} samples/s, {rate * size / 1e9:5.2f} GB/s: "
        f"{rate / (H200_FLOP_PER_S / SAMPLE_FLOP[kind]):5.1f} times what an H200 would consume"
    )


def main() -> None:
    """Writes stores into temporary folders, loads and trains from them, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=["mini"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=1, help="that the loader reads with")
    parser.add_argument("--pairs", type=int, default=24, help="of the store at full size: 23 MB each in fp16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ratios = []
    for name in options.shapes:
        stack = load_shape(name, options.device)
        shape = shape_of(stack)
        print(f"{name}: batches of {options.batch_size}, {options.threads} reading thread(s), {stack.device}")
        for kind, config in KINDS.items():
            with tempfile.TemporaryDirectory(prefix="ezigen-bench-") as folder:
                write(Path(folder), shape, config, 8 * options.batch_size)
                ratios.append(compare(Path(folder), kind, load_shape(name, options.device), options))
    print("SD2.1 at 512 px: batches of 4")
    device = load_shape("mini", options.device).device
    for kind in KINDS:
        with tempfile.TemporaryDirectory(prefix="ezigen-bench-") as folder:
            measure_sd21(Path(folder), kind, options, device)
    if ratios:
        print(f"smallest ratio of loader to step: {min(ratios):.1f} (wanted: {WANTED_RATIO:g})")


if __name__ == "__main__":
    main()
