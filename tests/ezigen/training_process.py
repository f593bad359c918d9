"""One of several processes that train together: python -m tests.ezigen.training_process FOLDER RANK WORLD_SIZE.

Prints a line of JSON per step, saves its last state to FOLDER/rank-RANK, and goes on to a step whose loss is not a
number in the last process alone.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import distributed

from ezigen.config import OptimizerConfig, TrainingConfig
from ezigen.models import load_stack
from ezigen.training import Learner, TrainingDiverged
from tests.ezigen.training_batches import make_batch

NUM_STEPS, BATCH_SIZE = 3, 5
CONFIG = TrainingConfig(
    batch_size=BATCH_SIZE,
    text_dropout=0.2,
    gradient_checkpointing=True,
    optimizer=OptimizerConfig(lr=1e-3, ema_decay=0.9, clip_norm=0.05),
)


def run(folder: Path, rank: int, world_size: int) -> list[dict]:
    """Trains NUM_STEPS on this process's share of every global batch; the first of two has two micro-batches."""
    stack = load_stack(str(folder / "model"), device="cpu", dtype="fp32")
    everything = [make_batch(stack, range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)) for step in range(NUM_STEPS)]
    learner = Learner(stack, CONFIG, num_steps=NUM_STEPS + 1, t_sub=1)
    shares = [batch.split(3)[rank] if world_size == 2 else batch for batch in everything]
    reports = []
    for step, share in enumerate(shares, start=1):
        flag = rank == world_size - 1 and step == 2
        parts = share.split(2 if rank == 0 else 0)
        reports.append(asdict(learner.train_step(parts, num_samples=BATCH_SIZE, flag=flag)))
    learner.save(folder / f"rank-{rank}-of-{world_size}")
    bad = shares[0] if rank < world_size - 1 else replace(shares[0], mean=shares[0].mean * float("nan"))
    try:
        learner.train_step([bad], num_samples=BATCH_SIZE)
    except TrainingDiverged as error:
        reports.append({"step": error.step, "what": error.what})
    return reports


def main() -> None:
    """Meets the others through a file and trains."""
    torch.set_num_threads(1)
    folder, rank, world_size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world_size)
    for report in run(folder, rank, world_size):
        print(json.dumps(report), flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
