"""FLOP of network calls, against formulas and against the same networks without data."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ezigen.models.flop import FlopMeter, count_flop


def test_a_matrix_product_is_two_per_multiply_add():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    result, flop = count_flop(lambda: a @ b)
    assert torch.equal(result, a @ b)
    assert flop == 2 * 3 * 5 * 7


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_counted_on_a_cpu(masked):
    """Queries by keys, and weights by values: two products of heads x queries x keys x width."""
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 9, 8)
    mask = torch.ones(2, 1, 6, 9, dtype=torch.bool) if masked else None
    _, flop = count_flop(lambda: functional.scaled_dot_product_attention(query, key, key, attn_mask=mask))
    assert flop == 2 * (2 * 2 * 4 * 6 * 9 * 8)


def test_a_unet_costs_what_its_copy_without_data_costs(tiny_stack):
    """Attention on the meta device is products of matrices, which PyTorch counts by itself."""
    latents = torch.randn(3, *tiny_stack.latent_shape)
    text = torch.randn(3, 5, tiny_stack.unet.config.cross_attention_dim)
    t = torch.tensor([7, 8, 9])
    with torch.no_grad():
        expected = tiny_stack.unet(latents, t, text)[0]
        output, flop = count_flop(lambda: tiny_stack.unet(latents, t, text)[0])
    twin = copy.deepcopy(tiny_stack.unet).to("meta")
    _, elsewhere = count_flop(lambda: twin(latents.to("meta"), t.to("meta"), text.to("meta")))
    assert torch.equal(output, expected)
    assert flop == elsewhere > 1e6


def test_a_kind_is_counted_once():
    layer, meter = nn.Linear(4, 4, bias=False), FlopMeter()
    calls = []

    def call(batch):
        calls.append(batch)
        return layer(torch.randn(batch, 4))

    assert meter("two", lambda: call(2))[1] == 2 * 2 * 16
    assert meter("three", lambda: call(3))[1] == 3 * 2 * 16
    assert meter("two", lambda: call(2))[1] == 2 * 2 * 16
    assert calls == [2, 3, 2]
