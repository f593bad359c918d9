"""What the precisions of a feature store cost: the error of stored tokens, block by block, on real subjects.

    python bench/feature_precision.py [--model mini] [--subjects 22]

Held-out products of the miniature world are encoded in fp32, stored as fp16, bf16 and fp8, and read back. An error is
the root mean square of the difference, as a share of that of the block's tokens; beside it the largest difference of
a number, as a share of the largest number of its token.
"""

import argparse
import hashlib
import tempfile
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from ezigen.config import FeatureConfig
from ezigen.images import fit_square
from ezigen.mini.evaluate import subject_picture
from ezigen.mini.world.products import make_variant, select_products
from ezigen.models import load_stack, to_pixels
from ezigen.subject import SubjectEncoder, SubjectFeatures
from tasks.features import (
    FeatureIdentity,
    FeatureShardWriter,
    FeatureStore,
    ModelShape,
    subject_id,
    write_index,
    write_store,
)
from tasks.storage import OutputFolder

PRECISIONS = ("fp16", "bf16", "fp8")


def encode_products(model: str, num_subjects: int) -> tuple[str, list[str], SubjectFeatures]:
    """The model's fingerprint, and the classes and features of so many products."""
    stack = load_stack(model, dtype="fp32")
    variants = [make_variant(product, 0) for product in select_products(held_out=True)[:num_subjects]]
    pictures = [subject_picture(variant) for variant in variants]
    pixels = torch.stack([to_pixels(fit_square(picture, stack.image_size_px).rgb) for picture in pictures])
    classes = [variant.product.subject_class for variant in variants]
    return stack.fingerprint, classes, SubjectEncoder(stack).encode(pixels, classes)


def store_and_read(
    folder: Path, identity: FeatureIdentity, classes: list[str], features: SubjectFeatures
) -> dict[str, Tensor]:
    """The tokens that a store of this identity gives back."""
    output = OutputFolder(str(folder))
    keys = [subject_id(hashlib.sha256(str(n).encode()).hexdigest(), name) for n, name in enumerate(classes)]
    write_store(output, identity)
    with FeatureShardWriter(output, identity, "r0-00000") as writer:
        writer.add_subjects(keys, classes, features)
        columns = {"pair_id": keys, "subject_id": keys, "target_id": keys, "text_id": keys, "source": keys}
        shard = writer.close(pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}))
    write_index(output, identity, {"r0-00000": shard})
    read = FeatureStore.open(str(folder)).read_subjects(keys).features
    return {name: tokens.float() for name, tokens in read.tokens.items()}


def describe_error(given: Tensor, found: Tensor) -> str:
    """Both errors in percent, of tokens (B, N, C)."""
    difference = found - given
    share = difference.square().mean().sqrt() / given.square().mean().sqrt()
    largest = (difference.abs() / given.abs().amax(dim=-1, keepdim=True)).max()
    return f"{100 * share:.3f} % ({100 * largest:.2f} %)"


def main() -> None:
    """Prints one line per block."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--subjects", type=int, default=22)
    options = parser.parse_args()
    fingerprint, classes, features = encode_products(options.model, options.subjects)
    shape, found = ModelShape.of(options.model), {}
    for dtype in PRECISIONS:
        identity = FeatureIdentity.of(fingerprint, shape, FeatureConfig(dtype=dtype), network_dtype="fp32")
        with tempfile.TemporaryDirectory(prefix="ezigen-bench-") as folder:
            found[dtype] = store_and_read(Path(folder), identity, classes, features)
    print(f"{len(classes)} subjects of {options.model}: error (largest error)")
    print(f"{'block':<50}" + "".join(f"{dtype:>22}" for dtype in PRECISIONS))
    for name, tokens in features.tokens.items():
        errors = (describe_error(tokens, found[dtype][name]) for dtype in PRECISIONS)
        print(f"{name:<50}" + "".join(f"{error:>22}" for error in errors))


if __name__ == "__main__":
    main()
