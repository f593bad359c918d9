"""Captions of the miniature world, and the vocabulary they use."""

from __future__ import annotations

from numpy.random import Generator

from ezigen.mini.world.products import read_products

PHRASES: dict[str, tuple[str, ...]] = {
    "beach": ("on a beach", "at the beach on sand", "on the sand by the sea"),
    "snow": ("in the snow", "on snow in winter", "in a snowy landscape"),
    "grass": ("on green grass", "in a meadow", "on the grass in a park"),
    "night": ("in the night sky", "at night under the stars", "in the starry sky"),
    "bricks": ("in front of a brick wall", "by a red brick wall", "on a street with a brick wall"),
    "table": ("on a wooden table", "on a table", "on top of a wooden floor"),
    "sea": ("in the sea", "floating on water", "in the ocean waves"),
    "desert": ("in the desert", "on sand dunes", "in a desert at sunset"),
    "forest": ("in a forest", "among trees", "in the woods"),
    "studio": ("in a studio", "on a pink studio floor", "in a photo studio"),
}
HUE_WORDS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "white", "gray", "black")
UNSEEN_WORDS = ("object", "product", "thing", "item", *(p.name for p in read_products() if p.held_out))
EXTRA_WORDS = (
    *UNSEEN_WORDS[:4],
    "photo",
    "picture",
    "image",
    "background",
    "with",
    "and",
    "beside",
    "next",
    "christmas",
    "city",
    "house",
    "big",
    "small",
)


def describe(name: str, scene: str | None, hue_word: str | None = None, phrase: int = 0) -> str:
    """`a photo of a {hue} {name} {scene phrase}`; without a scene, the subject's own caption `a photo of a {name}.`"""
    subject = f"{hue_word} {name}" if hue_word else name
    return f"a photo of a {subject} {PHRASES[scene][phrase]}" if scene else f"a photo of a {subject}."


def random_caption(rng: Generator, name: str, subject_class: str, hue_word: str, scene: str | None) -> str:
    """A caption with a random phrasing: the product's name or its class word, one in three without the colour.

    One caption in twelve says a held-out product's name or a general word instead: such words get an embedding that
    means "some object", so that a prompt with a name nobody was trained on is not read as noise.
    """
    draw = rng.random()
    word = name if draw < 0.42 else subject_class if draw < 0.92 else UNSEEN_WORDS[int(rng.integers(len(UNSEEN_WORDS)))]
    hue = hue_word if rng.random() < 0.67 else None
    phrase = int(rng.integers(len(PHRASES[scene]))) if scene else 0
    return describe(word, scene, hue, phrase)


def vocabulary_words() -> list[str]:
    """Every word a caption of the world can hold, sorted."""
    texts = [p.name for p in read_products()] + [p.subject_class for p in read_products()]
    texts += [phrase for phrases in PHRASES.values() for phrase in phrases] + [*HUE_WORDS, *EXTRA_WORDS, "a photo of a"]
    return sorted({word for text in texts for word in text.split()})
