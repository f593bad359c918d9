"""Adapters in a UNet: idle they are not there, active they are Eq. 3-4, and they alone train."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F  # noqa: N812

from ezigen.adapters import (
    AdapterSet,
    SubjectBlock,
    SubjectKV,
    attach_adapters,
    detach_adapters,
)
from ezigen.models import TextCondition, transformer_blocks
from ezigen.subject import SubjectFeatures, encode_latents, record_norms
from tests.tiny import tiny_unet

SD21_BASE = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SDXL = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return tiny_unet()


@pytest.fixture
def attached(unet):
    torch.manual_seed(1)
    adapters = attach_adapters(unet)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return adapters


def inputs(batch=4, seed=2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 4, 8, 8, generator=generator)
    t = torch.tensor([1, 200, 381, 999] * 4)[:batch]
    return x, t, torch.randn(batch, 16, 32, generator=generator)


def call(unet, arguments):
    return unet(*arguments).sample


def features_of(unet, batch=4, seed=5):
    x, t, text = inputs(batch, seed)
    return encode_latents(unet, x, t, TextCondition(text), px_per_latent=4)


# --- idle ---


def test_idle_equals_the_stock_unet_bit_for_bit(unet):
    stock = call(copy.deepcopy(unet), inputs())
    attach_adapters(unet)
    assert torch.equal(call(unet, inputs()), stock)


def test_idle_equals_stock_with_every_kind_of_call(unet):
    stock = copy.deepcopy(unet)
    attach_adapters(unet)
    x, t, text = inputs()
    mask = torch.ones(4, 16, dtype=torch.bool)
    mask[:, 9:] = False
    options = {"encoder_attention_mask": mask, "cross_attention_kwargs": {}, "attention_mask": torch.ones(4, 64)}
    x16 = torch.cat([x, x], dim=-1)  # not square
    assert torch.equal(
        unet(x16, t, text, **{"encoder_attention_mask": mask}).sample,
        stock(x16, t, text, encoder_attention_mask=mask).sample,
    )
    del options["attention_mask"]
    assert torch.equal(unet(x, 7, text, **options).sample, stock(x, 7, text, **options).sample)
    for net in (unet, stock):
        net.train()
        net.enable_gradient_checkpointing()
    assert torch.equal(call(unet, inputs()), call(stock, inputs()))


def test_active_and_idle_again_leaves_nothing(unet, attached):
    before = call(unet, inputs())
    with attached.active(features_of(unet)):
        assert not torch.equal(call(unet, inputs()), before)
    assert torch.equal(call(unet, inputs()), before)


def test_an_error_while_active_leaves_nothing(unet, attached):
    before = call(unet, inputs())
    with pytest.raises(RuntimeError), attached.active(features_of(unet)):
        raise RuntimeError
    assert torch.equal(call(unet, inputs()), before)


def test_detach_restores_the_stock_unet(unet):
    keys, modules = list(unet.state_dict()), [type(module) for module in unet.modules()]
    stock = call(unet, inputs())
    attach_adapters(unet)
    assert any(isinstance(module, SubjectBlock) for module in unet.modules())
    detach_adapters(unet)
    assert list(unet.state_dict()) == keys
    assert [type(module) for module in unet.modules()] == modules
    assert torch.equal(call(unet, inputs()), stock)
    detach_adapters(unet)  # a second time is no error
    attach_adapters(unet)  # and it can be attached again


def test_attaching_twice_is_an_error(unet, attached):
    with pytest.raises(ValueError, match="already"):
        attach_adapters(unet)


def test_block_names_do_not_change_when_attached(unet):
    names = list(transformer_blocks(unet))
    attached = attach_adapters(unet)
    assert list(transformer_blocks(unet)) == names == list(attached.names)
    assert "down_blocks.0.attentions.0.transformer_blocks.0" in names
    assert "mid_block.attentions.0.transformer_blocks.0" in names


def test_an_unfit_unet_is_refused():
    with pytest.raises(ValueError, match="cross-attention"):
        attach_adapters(tiny_unet(only_cross_attention=True))
    plain = tiny_unet(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, mid_block_type=None)
    with pytest.raises(ValueError, match="no transformer blocks"):
        attach_adapters(plain)


# --- initial values ---


def test_adapters_start_as_copies_of_the_self_attention(unet):
    adapters = attach_adapters(unet)
    for name, block in transformer_blocks(unet).items():
        adapter = adapters[name]
        assert torch.equal(adapter.norm.weight, block.norm1.weight)
        assert torch.equal(adapter.norm.bias, block.norm1.bias)
        assert torch.equal(adapter.to_q.weight, block.attn1.to_q.weight)
        assert torch.equal(adapter.to_k.weight, block.attn1.to_k.weight)
        assert torch.equal(adapter.to_v.weight, block.attn1.to_v.weight)
        assert torch.equal(adapter.to_out.weight, block.attn1.to_out[0].weight)
        assert torch.equal(adapter.to_out.bias, block.attn1.to_out[0].bias)
        assert adapter.to_q.weight is not block.attn1.to_q.weight
        assert adapter.subject_weight.item() == 1


def test_a_fresh_adapter_without_subject_is_the_blocks_own_self_attention(unet):
    """With no subject token, a fresh adapter computes attn1(norm1(h)): the library's own layer is the reference."""
    adapters = attach_adapters(unet)
    for name, block in transformer_blocks(unet).items():
        hidden = torch.randn(2, 9, block.attn1.to_q.in_features)
        nothing = adapters[name].key_value(hidden[:, :0])
        assert torch.allclose(adapters[name](hidden, nothing), hidden + block.attn1(block.norm1(hidden)), atol=1e-5)


# --- Eq. 3-4 ---


def by_hand(adapter, block, h, subject, text, mask=None, extra_residual=False):
    """A whole block in the words of METHOD 2, with plain matrix products and one head at a time."""
    h1 = h + block.attn1(block.norm1(h))
    u = F.layer_norm(h1, h1.shape[-1:], adapter.norm.weight, adapter.norm.bias, adapter.norm.eps)
    c = torch.cat([u, adapter.subject_weight * subject], dim=1)
    q, k, v = u @ adapter.to_q.weight.T, c @ adapter.to_k.weight.T, c @ adapter.to_v.weight.T
    d = q.shape[-1] // adapter.num_heads
    heads = []
    for i in range(adapter.num_heads):
        part = slice(i * d, (i + 1) * d)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / d**0.5
        if mask is not None:
            allowed = torch.cat([torch.ones(u.shape[:2], dtype=torch.bool), mask], dim=1)
            scores = scores.masked_fill(~allowed[:, None], -torch.inf)
        heads.append(scores.softmax(dim=-1) @ v[..., part])
    a = torch.cat(heads, dim=-1) @ adapter.to_out.weight.T + adapter.to_out.bias
    h2 = h1 + a + (u if extra_residual else 0)
    h3 = h2 + block.attn2(block.norm2(h2), encoder_hidden_states=text)
    return h3 + block.ff(block.norm3(h3))


@torch.no_grad()
@pytest.mark.parametrize("extra_residual", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_block_computes_the_paper_equations(unet, extra_residual, masked):
    adapters = attach_adapters(unet, extra_residual=extra_residual)
    for parameter in adapters.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    text = torch.randn(3, 16, 32)
    for name, block in transformer_blocks(unet).items():
        dim = block.attn1.to_q.in_features
        h, subject = torch.randn(3, 10, dim), torch.randn(3, 7, dim)
        mask = torch.rand(3, 7) < 0.5 if masked else None
        features = SubjectFeatures(
            {other: torch.zeros(3, 7, adapters[other].to_q.in_features) for other in adapters.names} | {name: subject},
            mask if mask is None else dict.fromkeys(adapters.names, mask),
        )
        with adapters.active(features):
            ours = unet.get_submodule(name)(h, encoder_hidden_states=text)
        expected = by_hand(adapters[name], block, h, subject, text, mask, extra_residual)
        assert torch.allclose(ours, expected, atol=1e-5)


def test_masked_tokens_do_not_exist(unet, attached):
    features = features_of(unet)
    dropped = features.keep(torch.tensor([True, False, True, False]))
    none = SubjectFeatures({name: tokens[:, :0] for name, tokens in features.tokens.items()})
    with torch.no_grad():
        with attached.active(features):
            present = call(unet, inputs())
        with attached.active(none):
            absent = call(unet, inputs())
        with attached.active(dropped):
            mixed = call(unet, inputs())
    assert torch.allclose(mixed[[0, 2]], present[[0, 2]], atol=1e-5)
    assert torch.allclose(mixed[[1, 3]], absent[[1, 3]], atol=1e-5)
    assert (present - absent).abs().max() > 1e-3


def test_zero_tokens_are_not_no_tokens(unet, attached):
    features = features_of(unet)
    zeros = SubjectFeatures({name: torch.zeros_like(tokens) for name, tokens in features.tokens.items()})
    with torch.no_grad():
        with attached.active(zeros):
            with_zeros = call(unet, inputs())
        with attached.active(features.keep(torch.zeros(4, dtype=torch.bool))):
            without = call(unet, inputs())
    assert (with_zeros - without).abs().max() > 1e-4


def test_a_closed_gate_is_the_stock_block(unet, attached):
    stock = call(unet, inputs())
    features = features_of(unet)
    with torch.no_grad():
        with attached.active(features):
            adapted = call(unet, inputs())
        with attached.active(features, gate=torch.tensor([0, 1, 0, 1])):
            mixed = call(unet, inputs())
    assert torch.equal(mixed[[0, 2]], stock[[0, 2]])
    assert torch.equal(mixed[[1, 3]], adapted[[1, 3]])


def test_guidance_branches_share_the_subject(unet, attached):
    features = features_of(unet, batch=2)
    gate = torch.tensor([1, 0])
    mask = torch.tensor([[True, False], [True, True]])
    for subject in (features, SubjectFeatures.concatenate([features, features]).keep(mask)):
        doubled = SubjectFeatures.stack([subject, subject])
        with torch.no_grad():
            with attached.active(subject, gate=gate):
                shared = call(unet, inputs(4))
            with attached.active(doubled, gate=gate.repeat(2)):
                repeated = call(unet, inputs(4))
        assert torch.allclose(shared, repeated, atol=1e-6)


def test_a_batch_that_does_not_divide_is_an_error(unet, attached):
    with attached.active(features_of(unet, batch=3)), pytest.raises(ValueError, match="4 samples"):
        call(unet, inputs(4))


def test_samples_do_not_see_each_other(unet, attached):
    features = features_of(unet)
    with torch.no_grad():
        with attached.active(features):
            together = call(unet, inputs())
        for row in range(4):
            with attached.active(features.select(row)):
                alone = call(unet, [argument[row : row + 1] for argument in inputs()])
            assert torch.allclose(alone, together[row : row + 1], atol=1e-5)


def test_features_of_another_unet_are_refused(unet, attached):
    features = features_of(unet)
    some = dict(list(features.tokens.items())[1:])
    with pytest.raises(ValueError, match="another UNet"):
        attached.activate(SubjectFeatures(some))


# --- keys and values ---


def test_cached_keys_and_values_equal_the_uncached_bit_for_bit(unet, attached):
    features = features_of(unet).keep(torch.tensor([True, True, False, True]))
    cached = attached.subject_kv(features)
    with torch.no_grad():
        with attached.active(features):
            uncached = call(unet, inputs())
        for _ in range(2):
            with attached.active(cached):
                assert torch.equal(call(unet, inputs()), uncached)


def test_keys_and_values_stack_and_pad(unet, attached):
    one, two = features_of(unet, 1, seed=5), features_of(unet, 1, seed=6)
    pair = SubjectFeatures.concatenate([one, two])
    with torch.no_grad():
        stacked = SubjectKV.stack([attached.subject_kv(one), attached.subject_kv(pair)])
        with attached.active(stacked):
            together = call(unet, inputs(2))
        for row, features in enumerate((one, pair)):
            with attached.active(features):
                alone = call(unet, [argument[row : row + 1] for argument in inputs(2)])
            assert torch.allclose(alone, together[row : row + 1], atol=1e-5)
        assert stacked.batch_size == 2
        assert SubjectKV.stack([attached.subject_kv(one)] * 2).mask is None


# --- training ---


def test_only_the_adapters_train(unet, attached):
    features = features_of(unet)
    with attached.active(features.keep(torch.tensor([True, True, True, False]))):
        call(unet, inputs()).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in attached.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in unet.parameters())
    assert not any(tokens.requires_grad for tokens in features.tokens.values())


def test_gradients_agree_with_finite_differences(unet, attached):
    features = features_of(unet).keep(torch.tensor([True, False, True, True]))
    gate = torch.tensor([1.0, 1.0, 0.0, 1.0])

    def loss():
        with attached.active(features, gate=gate):
            return call(unet.double(), [a.double() if a.is_floating_point() else a for a in inputs()]).square().mean()

    attached.double()
    loss().backward()
    generator = torch.Generator().manual_seed(0)
    for parameter in list(attached.parameters())[::5]:
        index = torch.randint(parameter.numel(), (), generator=generator)
        values = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.view(-1)[index] += shift
                values.append(loss().item())
                parameter.view(-1)[index] -= shift
        numeric = (values[0] - values[1]) / 2e-5
        assert parameter.grad.view(-1)[index].item() == pytest.approx(numeric, rel=1e-3, abs=1e-9)


def test_gradient_checkpointing_gives_the_same_gradients(unet, attached):
    features = features_of(unet)
    gradients = []
    for checkpointing in (False, True):
        unet.train()
        (unet.enable_gradient_checkpointing if checkpointing else unet.disable_gradient_checkpointing)()
        attached.zero_grad()
        with attached.active(features):
            call(unet, inputs()).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in attached.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_backward_outside_with_checkpointing_is_an_error_not_a_wrong_gradient(unet, attached):
    unet.train()
    unet.enable_gradient_checkpointing()
    with attached.active(features_of(unet)):
        loss = call(unet, inputs()).square().mean()
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        loss.backward()


def test_training_in_reduced_precision(unet, attached):
    features = features_of(unet)
    with torch.autocast("cpu", torch.bfloat16), attached.active(features):
        loss = call(unet, inputs()).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in attached.parameters())


# --- features ---


def test_features_equal_a_plain_forward_hook(unet):
    seen = {}
    stock = copy.deepcopy(unet)
    for name, module in stock.named_modules():
        if name.endswith("transformer_blocks.0.attn1"):
            block = name.removesuffix(".attn1")
            module.register_forward_hook(lambda _, arguments, __, block=block: seen.update({block: arguments[0]}))
    call(stock, inputs())
    for features in (features_of(unet, seed=2), (attach_adapters(unet), features_of(unet, seed=2))[1]):
        assert set(features.tokens) == set(seen)
        assert all(torch.equal(features.tokens[name], seen[name]) for name in seen)


def test_recording_leaves_no_hooks(unet):
    with record_norms(unet):
        pass
    assert not any(block.norm1._forward_hooks for block in transformer_blocks(unet).values())


def test_slots_own_equal_shares_of_the_tokens(unet):
    one, two = features_of(unet, 2, seed=5), features_of(unet, 2, seed=6)
    pair = SubjectFeatures.concatenate([one, two]).keep(torch.tensor([[True, False], [False, True]]))
    for name, mask in pair.mask.items():
        half = one.tokens[name].shape[1]
        assert mask[0].tolist() == [True] * half + [False] * half
        assert mask[1].tolist() == [False] * half + [True] * half


# --- the real sizes ---


def meta(config):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def test_numbers_of_sd21_base():
    unet = meta(SD21_BASE)
    total = sum(parameter.numel() for parameter in unet.parameters())
    adapters = attach_adapters(unet)
    assert isinstance(adapters, AdapterSet)
    assert len(adapters) == 16
    assert adapters.num_parameters == 49_599_056
    assert sum(parameter.numel() for parameter in adapters.parameters() if parameter.requires_grad) == 49_599_056
    assert 100 * adapters.num_parameters / total == pytest.approx(5.7, abs=0.05)
    assert {adapter.num_heads for adapter in (adapters[name] for name in adapters.names)} == {5, 10, 20}


def test_feature_shapes_of_sd21_base():
    features = encode_latents(
        meta(SD21_BASE),
        torch.zeros(1, 4, 64, 64, device="meta"),
        torch.ones(1, device="meta"),
        TextCondition(torch.zeros(1, 77, 1024, device="meta")),
        px_per_latent=8,
    )
    expected = {
        "down_blocks.0": (2, 4096, 320),
        "down_blocks.1": (2, 1024, 640),
        "down_blocks.2": (2, 256, 1280),
        "mid_block": (1, 64, 1280),
        "up_blocks.1": (3, 256, 1280),
        "up_blocks.2": (3, 1024, 640),
        "up_blocks.3": (3, 4096, 320),
    }
    for prefix, (count, num_tokens, dim) in expected.items():
        shapes = [tokens.shape for name, tokens in features.tokens.items() if name.startswith(prefix)]
        assert shapes == [(1, num_tokens, dim)] * count
    assert len(features.tokens) == 16
    assert features.num_values == pytest.approx(11.55e6, rel=1e-3)


def test_numbers_of_sdxl():
    adapters = attach_adapters(meta(SDXL))
    assert len(adapters) == 70
    assert adapters.num_parameters == 409_849_670


def test_an_adapter_that_was_saved_has_only_its_own_tensors(attached, tmp_path):
    save_file(attached.tensors(), tmp_path / "tensors.safetensors")
    assert len(attached.tensors()) == 8 * len(attached)
    assert sum(tensor.numel() for tensor in attached.tensors().values()) == attached.num_parameters
