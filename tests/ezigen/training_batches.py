"""Training batches of the tiny stack, sample by sample a function of the position alone."""

import zlib

import torch

from ezigen.models import encode_pictures, encode_prompts, tokenize_prompts
from ezigen.subject import SubjectEncoder, SubjectFeatures
from ezigen.training import TrainBatch

CLASSES = ("cup", "dog", "shoe", "lamp")
CAPTIONS = ("a cup on the table", "a dog in the snow", "a red shoe", "the lamp on a wall")


def random(shape, *key):
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(repr(key).encode())))


def make_batch(stack, positions, *, policy="stored", slots=None, stored_text=True, dtype=torch.float32):
    """slots: rows of S booleans; None gives every sample one subject. Adapters must be idle."""
    slots = torch.tensor(slots) if slots else torch.ones(len(positions), 1, dtype=torch.bool)
    num_slots = slots.shape[1]
    classes = [[CLASSES[(p + s) % 4] for s in range(num_slots)] for p in positions]
    pictures = [torch.stack([random((3, 32, 32), p, s).clamp(-1, 1) for p in positions]) for s in range(num_slots)]
    captions = [CAPTIONS[p % 4] for p in positions]
    latents = None
    if policy == "recompute":
        latents = torch.stack([encode_pictures(stack, each) for each in pictures], dim=1)
        latents = latents * slots[:, :, None, None, None]
    return TrainBatch(
        positions=torch.tensor(positions),
        mean=torch.stack([random((4, 8, 8), p, "mean") for p in positions]),
        variance=torch.stack([random((4, 8, 8), p, "variance").square() for p in positions]) / 100,
        text=encode_prompts(stack, captions) if stored_text else None,
        token_ids=tokenize_prompts(stack, captions).input_ids,
        slots=slots,
        timesteps=torch.tensor([[0, 999]] * len(positions)),
        sources=torch.tensor([p % 2 for p in positions]),
        features=store_features(stack, pictures, classes, slots, dtype) if policy == "stored" else None,
        subject_latents=latents,
        subject_classes=tuple(
            tuple(name for name, exists in zip(names, row, strict=True) if exists)
            for names, row in zip(classes, slots.tolist(), strict=True)
        ),
    )


def store_features(stack, pictures, classes, slots, dtype):
    """What a feature store holds: the subject encoder's own features, slot after slot, missing ones masked."""
    encoder = SubjectEncoder(stack)
    each = [
        encoder.encode(given, [names[slot] for names in classes], t_sub=1).to("cpu", dtype)
        for slot, given in enumerate(pictures)
    ]
    features = SubjectFeatures.concatenate(each)
    return features if slots.all() else features.keep(slots)
