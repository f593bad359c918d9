"""What an evaluation measures of images (paper 4): text following, identity, and what an edit leaves of its source.

| name | of | what |
|---|---|---|
| clip_t | image, prompt | cosine of CLIP's vectors |
| clip_i | image, subject | cosine of CLIP's vectors, mean over the subject's pictures |
| dino | image, subject | cosine of DINO's CLS tokens, mean over the subject's pictures |
| dino_patch | image, subject | for every patch of the subject the cosine to the most alike patch of the image; means |
| dino_sub | image in its region, subject | as dino, both cut out, on white and cropped |
| face | image, subject | see FaceScorer; 0 where a face is missing, and face_found says how often both are there |
| psnr, ssim | edit, source | outside of the mask, by pixels |
| perceptual | edit, source | outside of the mask, 1 - cosine of DINO's patches of one place; 0 is untouched |

Scores of the embedded model's small encoders compare among themselves alone, never with published ones.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ezigen.images import Picture, fit_square
from ezigen.images.picture import squash_square
from ezigen.metrics.faces import FaceScorer
from ezigen.metrics.pixels import psnr, ssim
from ezigen.models.image_encoder import ImageEncoder
from ezigen.models.pixels import to_pixels
from ezigen.models.text_image_encoder import TextImageEncoder

NEARLY_WHITE = 240
"""Of a picture on white without a mask, what is darker is the subject."""

_MAX_CACHED = 4096


@dataclass(frozen=True, eq=False)
class Shown:
    """An image and what it was to show.

    subjects: pictures of the subject. Of an edit also the source and the mask, "L", both of the image's size; and the
    region, "L", where the new subject is known to be in the image: without it that is the mask.
    """

    image: Image.Image
    prompt: str
    subjects: tuple[Picture, ...] = ()
    source: Image.Image | None = None
    mask: Image.Image | None = None
    region: Image.Image | None = None


@dataclass(frozen=True, eq=False)
class _Reference:
    """A subject's picture as the encoders see it: vectors (D,), tokens of the subject's patches (N, D)."""

    clip: Tensor | None
    dino: Tensor | None
    patches: Tensor | None
    cut: Tensor | None


class Measurer:
    """Measures many images at a time; what encoder is missing is not measured. Not for several threads at once."""

    def __init__(
        self, clip: TextImageEncoder | None, dino: ImageEncoder | None, face: FaceScorer | None = None
    ) -> None:
        self.clip, self.dino, self.face = clip, dino, face
        self._texts: dict[str, Tensor] = {}
        self._references: dict[str, _Reference] = {}

    def measure(self, shown: Sequence[Shown]) -> list[dict[str, float]]:
        """The measures of every image that its kind has, by name."""
        scores: list[dict[str, float]] = [{} for _ in shown]
        if not shown:
            return scores
        if self.clip is not None:
            self._by_clip(self.clip, shown, scores)
        if self.dino is not None:
            self._by_dino(self.dino, shown, scores)
            self._by_region(self.dino, shown, scores)
            self._by_background(self.dino, shown, scores)
        for one, found in zip(shown, scores, strict=True):
            if self.face is not None and one.subjects:
                found.update(self.face.score(one.image, one.subjects))
            if one.source is not None and one.mask is not None and (kept := background(one.mask)).any():
                found["psnr"] = psnr(one.image, one.source, kept)
                found["ssim"] = ssim(one.image, one.source, kept)
        return scores

    # ---- by encoder

    def _by_clip(self, clip: TextImageEncoder, shown: Sequence[Shown], scores: list[dict[str, float]]) -> None:
        self._encode_texts(clip, [one.prompt for one in shown])
        vectors = clip.images([one.image for one in shown])
        for one, vector, found in zip(shown, vectors, scores, strict=True):
            found["clip_t"] = float(vector @ self._texts[one.prompt])
            if one.subjects:
                given = [self._reference(picture).clip for picture in one.subjects]
                found["clip_i"] = float(torch.stack([vector @ g for g in given if g is not None]).mean())

    def _by_dino(self, dino: ImageEncoder, shown: Sequence[Shown], scores: list[dict[str, float]]) -> None:
        tokens = dino.tokens(_square([one.image for one in shown], dino.size_px))
        for one, (cls, patches), found in zip(shown, map(_apart, tokens), scores, strict=True):
            references = [self._reference(picture) for picture in one.subjects]
            if references:
                found["dino"] = _mean(_cosine(cls, r.dino) for r in references if r.dino is not None)
                found["dino_patch"] = _mean(best_match(r.patches, patches) for r in references if r.patches is not None)

    def _by_background(self, dino: ImageEncoder, shown: Sequence[Shown], scores: list[dict[str, float]]) -> None:
        edits = [
            (one.image, one.source, one.mask, found)
            for one, found in zip(shown, scores, strict=True)
            if one.source is not None and one.mask is not None
        ]
        if not edits:
            return
        pairs = [image for made, source, _, _ in edits for image in (made, source)]
        tokens = dino.tokens(torch.stack([_squash(image, dino.size_px) for image in pairs]))[:, 1:]
        changes = 1 - F.cosine_similarity(tokens[0::2], tokens[1::2], dim=-1)
        for (_, _, mask, found), change in zip(edits, changes, strict=True):
            if (kept := ~patches_of(mask, len(change))).any():
                found["perceptual"] = float(change[kept.to(change.device)].mean())

    def _by_region(self, dino: ImageEncoder, shown: Sequence[Shown], scores: list[dict[str, float]]) -> None:
        wanted = [one.mask is not None and bool(one.subjects) and (~background(one.mask)).any() for one in shown]
        places = ((one.image, one.mask if one.region is None else one.region) for one in compress(shown, wanted))
        regions = [cut_region(image, place) for image, place in places if place is not None]
        if not regions:
            return
        vectors = iter(dino.cls(_square(regions, dino.size_px)))
        for one, found in compress(zip(shown, scores, strict=True), wanted):
            region, cuts = next(vectors), [self._reference(picture).cut for picture in one.subjects]
            found["dino_sub"] = _mean(_cosine(region, cut) for cut in cuts if cut is not None)

    # ---- what many images share

    def _encode_texts(self, clip: TextImageEncoder, prompts: Sequence[str]) -> None:
        _make_room(self._texts, len(prompts))
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        if missing:
            self._texts |= dict(zip(missing, clip.texts(missing), strict=True))

    def _reference(self, picture: Picture) -> _Reference:
        key = _digest(picture)
        if key not in self._references:
            _make_room(self._references, 1)
            self._references[key] = self._encode(picture)
        return self._references[key]

    def _encode(self, picture: Picture) -> _Reference:
        clip = None if self.clip is None else self.clip.images([picture.rgb])[0]
        if self.dino is None:
            return _Reference(clip, None, None, None)
        square = fit_square(picture, self.dino.size_px)
        pair = torch.stack([to_pixels(square.rgb), _square([cut_subject(picture)], self.dino.size_px)[0]])
        (cls, patches), (cut, _) = map(_apart, self.dino.tokens(pair))
        if square.mask is not None and (inside := patches_of(square.mask, len(patches))).any():
            patches = patches[inside.to(patches.device)]
        return _Reference(clip, cls, patches, cut)


def best_match(subject: Tensor, image: Tensor) -> float:
    """For each token of the subject (N, D) the greatest cosine to a token of the image (M, D); their mean."""
    return float((F.normalize(subject, dim=-1) @ F.normalize(image, dim=-1).T).amax(dim=1).mean())


def background(mask: Image.Image) -> npt.NDArray[np.bool_]:
    """(H, W): the pixels that an edit must leave as they are."""
    untouched: npt.NDArray[np.bool_] = np.asarray(mask) == 0
    return untouched


def patches_of(mask: Image.Image, num_patches: int) -> Tensor:
    """(num_patches,) bool: the patches of a square grid that a mask "L" touches."""
    side = round(num_patches**0.5)
    values = torch.from_numpy(np.array(mask, dtype=np.float32))[None, None]
    return F.adaptive_max_pool2d(values, side).flatten() > 0


def cut_region(image: Image.Image, mask: Image.Image) -> Image.Image:
    """What a mask leaves of an image: on white, cropped to it. A mask that is nowhere above half leaves what it has."""
    rgb = Image.composite(image.convert("RGB"), Image.new("RGB", image.size, "white"), mask)
    return rgb.crop(mask.point(lambda value: 255 * (value > 127)).getbbox() or mask.getbbox())


def cut_subject(picture: Picture) -> Image.Image:
    """A subject on white, cropped to it: by its mask, else by what is not nearly white."""
    if picture.mask is not None and picture.mask.getbbox():
        return cut_region(picture.rgb, picture.mask)
    return picture.rgb.crop(picture.rgb.convert("L").point(lambda value: 255 * (value < NEARLY_WHITE)).getbbox())


def _square(images: Sequence[Image.Image], size_px: int) -> Tensor:
    """(B, 3, size_px, size_px) in [-1, 1], padded with white where they are not square."""
    return torch.stack([to_pixels(fit_square(Picture(image.convert("RGB")), size_px).rgb) for image in images])


def _squash(image: Image.Image, size_px: int) -> Tensor:
    """(3, size_px, size_px) in [-1, 1], with the whole picture in it and nothing else, whatever its shape."""
    return to_pixels(squash_square(Picture(image.convert("RGB")), size_px).rgb)


def _apart(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """CLS (D,) and patches (N, D)."""
    return tokens[0], tokens[1:]


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one, other, dim=0))


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _digest(picture: Picture) -> str:
    digest = hashlib.blake2b(repr(picture.rgb.size).encode(), digest_size=16)
    digest.update(picture.rgb.tobytes())
    if picture.mask is not None:
        digest.update(b"mask" + picture.mask.tobytes())
    return digest.hexdigest()


def _make_room(cache: dict[str, Tensor] | dict[str, _Reference], count: int) -> None:
    if len(cache) + count > _MAX_CACHED:
        cache.clear()
