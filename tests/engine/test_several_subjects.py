"""Several subjects in one image, and one subject between several: the engine as the sampler."""

import itertools

import pytest
import torch

from ezigen.config import ErrorCode, ItemError
from ezigen.engine import Engine, EngineLimits, Networks
from ezigen.sampling.subjects import encode_subject
from ezigen.subject import SubjectEncoder, SubjectFeatures
from tests.ezigen.test_sampling import assert_same, make, picture, request, sampler

TWO = (picture(1), picture(2))


def made_by_engine(stack, adapters, requests, num_slots=2):
    networks = Networks(stack, adapters)
    engine = Engine(networks, sampler(mode="decoupled"), EngineLimits(num_slots=num_slots))
    return {ended.key: ended.sample for ended in engine.generate(requests)}


def test_the_engine_makes_what_the_sampler_makes(tiny_stack, adapters):
    requests = [
        request(0, subjects=TWO, subject_classes=("cup", "dog")),
        request(1, subjects=TWO, mix=(0.25, 0.75)),
        request(2, subjects=TWO, subject_classes=("cup", "dog"), mix=(0.5, 0.5)),
    ]
    engine = made_by_engine(tiny_stack, adapters, requests)
    one_by_one = make(tiny_stack, adapters, num_slots=2, mode="decoupled")
    for wanted in requests:
        assert_same(engine[wanted.key], one_by_one.generate([wanted])[0])


def test_images_of_different_classes_and_shares_are_not_mistaken_for_each_other(tiny_stack, adapters):
    """They share pictures, prompt and seed: only what tells them apart is left for the caches to see."""
    kinds = [
        {},
        {"subject_classes": ("cup", "dog")},
        {"subject_classes": ("dog", "cup")},
        {"mix": (0.5, 0.5)},
        {"mix": (0.75, 0.25)},
    ]
    requests = [request(0, key=f"{n}", subjects=TWO, **kind) for n, kind in enumerate(kinds)]
    samples = made_by_engine(tiny_stack, adapters, requests)
    for one, other in itertools.combinations(samples.values(), 2):
        assert one.image.tobytes() != other.image.tobytes()


def test_all_of_one_subject_is_that_subject(tiny_stack, adapters):
    mixed = request(0, key="mixed", subjects=TWO, mix=(0.0, 1.0))
    alone = request(0, key="alone", subjects=TWO[1:])
    samples = made_by_engine(tiny_stack, adapters, [mixed, alone])
    assert samples["mixed"].image.tobytes() == samples["alone"].image.tobytes()
    assert samples["mixed"].num_unet_calls == samples["alone"].num_unet_calls + 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mix": (1.0,)}, "mix has 1 entries for 2 pictures"),
        ({"mix": (0.5, 0.6)}, "shares are at least 0 and 1 together"),
        ({"mix": (1.5, -0.5)}, "shares are at least 0 and 1 together"),
        ({"subject_classes": ("cup", "dog", "cat")}, "subject_classes has 3 entries for 2 pictures"),
    ],
)
def test_what_does_not_go_with_the_pictures_is_refused(tiny_stack, adapters, changes, says):
    wrong = request(0, subjects=TWO, **changes)
    with pytest.raises(ItemError, match=says) as caught:
        make(tiny_stack, adapters).generate([wrong])
    assert caught.value.code is ErrorCode.ROW_INVALID
    with pytest.raises(ItemError, match=says):
        Engine(Networks(tiny_stack, adapters), sampler()).add(wrong)


def test_each_picture_is_encoded_under_its_own_class(tiny_stack, adapters):
    encoder = SubjectEncoder(tiny_stack)
    size = tiny_stack.image_size_px
    features = [encode_subject(encoder, TWO[n], name, size, sampler()) for n, name in enumerate(("cup", "dog"))]
    swapped = [encode_subject(encoder, TWO[n], name, size, sampler()) for n, name in enumerate(("dog", "cup"))]
    joined = SubjectFeatures.concatenate(features)
    for name, tokens in joined.tokens.items():
        assert torch.equal(tokens, torch.cat([f.tokens[name] for f in features], dim=1))
    assert any(
        not torch.equal(a.tokens[n], b.tokens[n]) for a, b in zip(features, swapped, strict=True) for n in a.tokens
    )


def test_mixed_tokens_are_weighted_sums_of_those_that_exist():
    def features(values, mask=None):
        tokens = {"block": torch.tensor(values)[None, :, None].expand(1, -1, 2)}
        return SubjectFeatures(tokens, None if mask is None else {"block": torch.tensor([mask])})

    plain = SubjectFeatures.mix([features([1.0, 2.0]), features([3.0, 6.0])], [0.25, 0.75])
    assert plain.mask is None
    assert plain.tokens["block"][0, :, 0].tolist() == [2.5, 5.0]
    partly = SubjectFeatures.mix(
        [features([1.0, 2.0, 4.0], [True, True, False]), features([3.0, 6.0, 8.0], [True, False, False])], [0.25, 0.75]
    )
    assert partly.tokens["block"][0, :, 0].tolist() == [2.5, 2.0, 0.0]
    assert partly.mask is not None
    assert partly.mask["block"].tolist() == [[True, True, False]]
