"""A train step from stored features against the authors' recipe, at equal size and batch, in one run.

    python bench/train_step.py [--shapes mini quarter] [--batch-size N] [--rounds 5] [--device auto]

The authors' step does everything online and in fp32: the VAE encodes the target and four subject slots (one subject
and three blank pictures), the text encoder the caption and four class prompts, the UNet the four slots, and every
adapter attends to all four. Ours has one subject and its stored features. Both share the adapters' implementation,
the optimizer (AdamW with clipping) and the dropout (none), so that the ratio is that of what is computed. Steps of both
alternate; printed are the medians: CPU seconds of one thread on a CPU, which other programs hardly touch, seconds on a
GPU.

Shapes: mini is the embedded model; quarter is Stable Diffusion 2.1 with a quarter of the channels at half the
resolution, with random weights; half has half of the channels.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from lines import show
from shapes import build_stack
from torch import Tensor, nn

from ezigen.adapters import AdapterSet, attach_adapters
from ezigen.config import OptimizerConfig, TrainingConfig
from ezigen.models import Stack, call_unet, encode_pictures, encode_prompts, load_stack, tokenize_prompts
from ezigen.subject import SUBJECT_PROMPT, SubjectEncoder, SubjectFeatures, encode_latents
from ezigen.training import Learner, TrainBatch

NUM_SLOTS = 4
CLASSES = ("dog", "cup", "shoe", "lamp")
WANTED_RATIO = 3.0
DIVISORS = {"quarter": 4, "half": 2}
BATCH_SIZES = {"mini": 16, "quarter": 2, "half": 1}


def load_shape(shape: str, device: str) -> Stack:
    """The networks of a shape, in fp32."""
    return load_stack("mini", device=device, dtype="fp32") if shape == "mini" else build_stack(DIVISORS[shape], device)


class AuthorsStep:
    """The authors' train step, from pictures and texts, as their code does it."""

    def __init__(self, stack: Stack, adapters: AdapterSet, pictures: Tensor, captions: list[str]) -> None:
        self._stack, self._adapters = stack, adapters
        self._targets, self._captions = pictures[0], captions
        blank = torch.ones_like(pictures[1])
        self._subjects = torch.stack([pictures[1], blank, blank, blank], dim=1).flatten(0, 1)
        classes = [name for caption in captions for name in (caption.split()[-1], "", "", "")]
        self._prompts = [SUBJECT_PROMPT.replace("{subject_class}", name) for name in classes]
        self._optimizer = torch.optim.AdamW(adapters.parameters(), lr=1e-4, weight_decay=0.01)

    def __call__(self) -> None:
        """One step."""
        stack, batch_size = self._stack, len(self._captions)
        features = self._encode_subjects()
        text = encode_prompts(stack, self._captions)
        noise = torch.randn(batch_size, *stack.latent_shape, device=stack.device)
        latents = encode_pictures(stack, self._targets, torch.randn(noise.shape))
        t = torch.randint(0, stack.schedule.num_train_steps, (batch_size,), device=stack.device)
        noisy = stack.schedule.add_noise(latents, noise, t)
        with self._adapters.active(features):
            output = call_unet(stack.unet, noisy, t, text, px_per_latent=stack.px_per_latent)
        loss = (output - stack.schedule.target(latents, noise, t)).square().mean()
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._adapters.parameters(), 1.0)
        self._optimizer.step()
        loss.item()

    def _encode_subjects(self) -> SubjectFeatures:
        stack = self._stack
        latents = encode_pictures(stack, self._subjects)
        t = torch.ones(len(latents), dtype=torch.long, device=stack.device)
        noisy = stack.schedule.add_noise(latents, torch.randn_like(latents), t)
        text = encode_prompts(stack, self._prompts)
        found = encode_latents(stack.unet, noisy, t, text, px_per_latent=stack.px_per_latent)
        batch_size = len(self._captions)
        return SubjectFeatures({n: s.reshape(batch_size, -1, s.shape[-1]) for n, s in found.tokens.items()})


class OurStep:
    """Our train step, with what the stores hold already in memory."""

    def __init__(self, learner: Learner, batch: TrainBatch) -> None:
        self._learner, self._batch = learner, batch

    def __call__(self) -> None:
        """One step."""
        self._learner.train_step([self._batch], num_samples=len(self._batch))


def make_batch(stack: Stack, pictures: Tensor, captions: list[str], *, stored: bool) -> TrainBatch:
    """What the loader makes of stores of fp16, for the same pictures and texts."""
    batch_size = len(captions)
    classes = [caption.split()[-1] for caption in captions]
    mean = encode_pictures(stack, pictures[0])
    features = SubjectEncoder(stack).encode(pictures[1], classes).to(stack.device, torch.float16) if stored else None
    return TrainBatch(
        positions=torch.arange(batch_size),
        mean=mean,
        variance=torch.full_like(mean, 1e-4),
        text=encode_prompts(stack, captions).to(stack.device, torch.float16),
        token_ids=tokenize_prompts(stack, captions).input_ids,
        slots=torch.ones(batch_size, 1, dtype=torch.bool),
        timesteps=torch.tensor([[0, 999]] * batch_size),
        sources=torch.zeros(batch_size, dtype=torch.long),
        features=features,
        subject_latents=None if stored else encode_pictures(stack, pictures[1])[:, None],
        subject_classes=tuple((name,) for name in classes),
    )


def measure(steps: Mapping[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each step; they take turns, after one round that does not count."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(rounds + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number >= 1:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def compare(shape: str, batch_size: int, rounds: int, device: str) -> dict[str, float]:
    """Seconds per step of the authors' recipe and of ours, from stored features and from recomputed ones."""
    stack, theirs = load_shape(shape, device), load_shape(shape, device)
    generator = torch.Generator().manual_seed(0)
    size = stack.image_size_px
    pictures = torch.rand(2, batch_size, 3, size, size, generator=generator).to(stack.device) * 2 - 1
    captions = [f"a photo of a {CLASSES[index % len(CLASSES)]}" for index in range(batch_size)]
    batches = {stored: make_batch(stack, pictures, captions, stored=stored) for stored in (True, False)}
    config = TrainingConfig(subject_dropout=0.0, optimizer=OptimizerConfig(clip_norm=1.0))
    learner = Learner(stack, config, num_steps=1000, t_sub=1)
    steps = {
        "authors": AuthorsStep(theirs, attach_adapters(theirs.unet), pictures, captions),
        "stored": OurStep(learner, batches[True]),
        "recomputed": OurStep(learner, batches[False]),
    }
    return measure(steps, rounds, stack.device)


def main() -> None:
    """Prints one line per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["mini", "quarter"], choices=list(BATCH_SIZES))
    parser.add_argument("--batch-size", type=int, default=0, help="0: 16 for mini, fewer for larger shapes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for shape in options.shapes:
        batch_size = options.batch_size or BATCH_SIZES[shape]
        seconds = compare(shape, batch_size, options.rounds, options.device)
        authors = seconds.pop("authors")
        print(f"{shape}, batch {batch_size}: the authors' step {1000 * authors:.0f} ms")
        for name, found in seconds.items():
            wanted = f", wanted >= {WANTED_RATIO:g}" if name == "stored" else ""
            rate = f"training steps per second, {shape}, features {name}"
            show(rate, 1 / found, "1/s", 1 / authors, wanted=wanted.removeprefix(", "))
            print(f"  ours, features {name}: {1000 * found:.0f} ms, {authors / found:.1f}x{wanted}")


if __name__ == "__main__":
    main()
