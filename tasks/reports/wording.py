"""Numbers, times and names as people read them."""

import math
from datetime import UTC, datetime

STOP_REASONS = {
    "threshold": ("Settled", "the image no longer changed from one loop to the next"),
    "max_loops": ("Loop limit", "the image was still changing when the last permitted loop ended"),
    "fixed": ("Fixed number", "the number of loops was given"),
    "mode": ("No loops", "the chosen mode makes none"),
}
"""stop_reason -> (short name, what it means)."""

SCORE_NAMES = {
    "clip_t": ("CLIP-T", "follows the prompt"),
    "clip_i": ("CLIP-I", "likeness of the product"),
    "dino": ("DINO", "likeness of the product"),
    "dino_sub": ("DINO-sub", "likeness of the product alone"),
    "dino_patch": ("DINO patches", "likeness of the product, wherever it is"),
    "psnr": ("PSNR", "what an edit leaves of its background, in dB"),
    "ssim": ("SSIM", "what an edit leaves of its background"),
    "perceptual": ("Change", "what an edit changes of its background"),
    "product": ("product right", "a judge who knows the world's products chooses this one"),
    "scene": ("scene right", "a judge who knows the world's scenes chooses this one"),
    "variant": ("product and colour right", "the judge chooses this product in this colour"),
    "scene_margin": ("scene margin", "by how many nats the judge finds the scene likelier than the next one"),
    "num_loops": ("loops", "until the image settled"),
    "num_unet_calls": ("UNet calls", "evaluations of the UNet, each guidance branch and each subject counting one"),
    "tflop": ("TFLOP", "of the UNet alone, without what adapters and decoding add"),
    "seconds": ("seconds", "of a worker, beside others"),
    "face": ("Face", "likeness of the face"),
    "face_found": ("Faces found", "share with a face in image and subject"),
}
"""score -> (usual name, what it measures)."""

SHARES = frozenset({"product", "scene", "variant"})
"""Those of SCORE_NAMES that are yes or no of one image, and a share of several."""

COSTS = frozenset({"num_loops", "num_unet_calls", "tflop", "seconds"})
"""Those of SCORE_NAMES that say what an image took: none of it is good or bad."""

RUN_STATES = {
    "running": "Running",
    "finished": "Finished",
    "stopped": "Stopped",
    "failed": "Failed",
}


def score_name(name: str) -> str:
    """The usual name of a score."""
    return SCORE_NAMES.get(name, (name, ""))[0]


def format_number(value: float) -> str:
    """A whole number with separators: 12,345."""
    return f"{value:,.0f}"


def format_decimal(value: float | None, digits: int = 3) -> str:
    """So many significant digits, no exponent: 3.10, 0.0421, 117, 12,345; a dash for nothing."""
    if value is None:
        return "–"
    rounded = float(f"{value:.{digits}g}")
    if rounded == 0 or abs(rounded) >= 10 ** (digits - 1):
        return format_number(value)
    return f"{rounded:.{digits - 1 - math.floor(math.log10(abs(rounded)))}f}"


def format_compact(value: float) -> str:
    """A round number in little space: 0.25, 400, 20k, 1.5M."""
    for size, letter in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:,.4g}"


def format_seconds(value: float | None) -> str:
    """Seconds of work, or milliseconds when shorter: 3.42 s; a dash for nothing."""
    if value is None:
        return "–"
    return f"{format_decimal(value * 1000)} ms" if value < 0.1 else f"{format_decimal(value)} s"


def format_span(seconds: float) -> str:
    """A span of time in its two largest units: 7 min 12 s."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 1 else f"{seconds:.2g} s"
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    first = next(i for i, (_, size) in enumerate(units) if whole >= size)
    parts: list[str] = []
    for name, size in units[first : first + 2]:
        count, whole = divmod(whole, size)
        if count or not parts:
            parts.append(f"{count} {name}")
    return " ".join(parts)


def format_time(when: datetime | None) -> str:
    """Day and minute in UTC: 22 Nov 2026, 04:12 UTC; a dash for nothing."""
    return "–" if when is None else f"{when.astimezone(UTC):%-d %b %Y, %H:%M} UTC"


def plural(count: float, noun: str) -> str:
    """A number and its noun: 1 image, 2 images."""
    return f"{format_number(count)} {noun}{'' if count == 1 else 's'}"
