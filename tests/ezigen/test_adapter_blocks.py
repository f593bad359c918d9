"""Adapters in some of the blocks: those work as ever, the others are the library's own."""

import pytest
import torch

from ezigen.adapters import AdapterCard, attach_adapters, detach_adapters, load_adapter, read_card, save_adapter
from ezigen.adapters.attach import choose_blocks
from ezigen.config import ConfigurationError, TrainingConfig
from ezigen.models import load_stack, transformer_blocks
from ezigen.sampling import attach_to_stack
from ezigen.subject import SubjectFeatures
from ezigen.training import Learner

NAMES = (
    "down_blocks.0.attentions.0.transformer_blocks.0",
    "down_blocks.1.attentions.0.transformer_blocks.0",
    "up_blocks.0.attentions.1.transformer_blocks.0",
    "up_blocks.1.attentions.0.transformer_blocks.0",
    "mid_block.attentions.0.transformer_blocks.0",
)


@pytest.fixture
def stack(tiny_stack):
    yield tiny_stack
    detach_adapters(tiny_stack.unet)


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ((), NAMES),
        (("down",), NAMES[:2]),
        (("mid",), NAMES[4:]),
        (("mid", "up"), NAMES[2:]),
        (("up_blocks.1.*",), NAMES[3:4]),
        (("*.attentions.1.*", "mid"), (NAMES[2], NAMES[4])),
        (NAMES[1:3], NAMES[1:3]),
    ],
)
def test_blocks_by_side_pattern_and_name(wanted, chosen):
    assert choose_blocks(NAMES, wanted) == chosen


@pytest.mark.parametrize("wanted", ["middle", "up_blocks.9.*", ""])
def test_a_name_that_no_block_has_is_an_error(wanted):
    with pytest.raises(ValueError, match=f"adapter blocks '{wanted}'.*use down, mid, up"):
        choose_blocks(NAMES, ("down", wanted))


def inputs(stack):
    noise = torch.randn(1, *stack.latent_shape, generator=torch.Generator().manual_seed(0))
    width = stack.unet.config.cross_attention_dim
    return noise, torch.tensor([401]), torch.randn(1, 7, width, generator=torch.Generator().manual_seed(1))


def features_of(stack):
    generator = torch.Generator().manual_seed(2)
    widths = {name: block.norm1.weight.shape[0] for name, block in transformer_blocks(stack.unet).items()}
    return SubjectFeatures({name: torch.randn(1, 5, width, generator=generator) for name, width in widths.items()})


@torch.no_grad()
def test_skipped_blocks_stay_stock(stack):
    """The chosen blocks do what they do where the other adapters add zeros, bit for bit."""
    features, given = features_of(stack), inputs(stack)
    stock = dict(transformer_blocks(stack.unet))
    some = attach_adapters(stack.unet, blocks=("mid", "up"))
    assert some.names == tuple(name for name in stock if not name.startswith("down"))
    for name, block in stock.items():
        assert (stack.unet.get_submodule(name) is block) == name.startswith("down")
    with some.active(features):
        partial = stack.unet(*given).sample
    detach_adapters(stack.unet)
    everywhere = attach_adapters(stack.unet)
    for name in everywhere.names:
        if name.startswith("down"):
            everywhere[name].to_out.weight.zero_()
            everywhere[name].to_out.bias.zero_()
    with everywhere.active(features):
        silenced = stack.unet(*given).sample
    assert torch.equal(partial, silenced)
    idle = stack.unet(*given).sample
    assert not torch.allclose(partial, idle)


@torch.no_grad()
def test_masked_and_complete_subjects_share_a_call(stack):
    """One with a mask over all blocks and one without, where only some blocks carry adapters."""
    from ezigen.adapters import SubjectKV

    some, features = attach_adapters(stack.unet, blocks=("mid",)), features_of(stack)
    masked = features.keep(torch.tensor([False]))
    joined = SubjectKV.stack([some.subject_kv(features), some.subject_kv(masked)])
    assert {name: mask.tolist() for name, mask in joined.mask.items()} == {
        name: [[True] * 5, [False] * 5] for name in some.names
    }


def test_the_card_says_where_and_another_place_is_refused(stack, tmp_path):
    some = attach_adapters(stack.unet, blocks=("up",))
    card = save_adapter(some, tmp_path, AdapterCard())
    names = some.names
    assert card.blocks == read_card(tmp_path).blocks == names
    detach_adapters(stack.unet)
    for blocks in ((), ("down",), ("mid", "up")):
        other = attach_adapters(stack.unet, blocks=blocks)
        with pytest.raises(ConfigurationError, match=f"made for the {len(names)} blocks .*attach it to the blocks"):
            load_adapter(other, tmp_path, base_fingerprint=None)
        detach_adapters(stack.unet)
    loaded = attach_to_stack(stack, tmp_path)
    assert loaded.names == names
    detach_adapters(stack.unet)
    everywhere = attach_adapters(stack.unet)
    assert save_adapter(everywhere, tmp_path / "all", AdapterCard()).blocks == ()
    detach_adapters(stack.unet)
    some = attach_adapters(stack.unet, blocks=("up",))
    with pytest.raises(ConfigurationError, match="made for all blocks, attached to"):
        load_adapter(some, tmp_path / "all", base_fingerprint=None)


def test_training_some_blocks(tiny_folder):
    stack = load_stack(str(tiny_folder), device="cpu")
    config = TrainingConfig(adapter_blocks=("mid",))
    assert config.digest() != TrainingConfig().digest()
    learner = Learner(stack, config, num_steps=1, t_sub=1)
    assert {name.split("_")[0] for name in learner.adapters.names} == {"mid"}
    learner.close()
    with pytest.raises(ConfigurationError, match=r"training.adapter_blocks: adapter blocks 'left'"):
        Learner(stack, TrainingConfig(adapter_blocks=("left",)), num_steps=1, t_sub=1)
