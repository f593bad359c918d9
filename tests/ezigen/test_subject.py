"""Subject encoding (paper 3.1) against diffusers' own pieces."""

import diffusers
import pytest
import torch

from ezigen.diffusion import NoiseSource
from ezigen.subject import SubjectEncoder


@pytest.mark.parametrize("t_sub", [1, 300])
def test_features_are_the_norm1_outputs_of_one_noised_forward(tiny_folder, tiny_stack, t_sub):
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        tiny_folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    features = SubjectEncoder(tiny_stack).encode(pictures, ["cup", "red chair"], t_sub=t_sub, seeds=[3, 4])
    seen = {}
    for name, module in pipeline.unet.named_modules():
        if name.endswith(".norm1") and "transformer_blocks" in name:
            block = name.removesuffix(".norm1")
            module.register_forward_hook(lambda _, __, output, block=block: seen.update({block: output}))
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    noise = torch.stack([NoiseSource().noise(seed, "subject", 0, 0, (4, 8, 8)) for seed in (3, 4)])
    with torch.no_grad():
        latents = pipeline.vae.encode(pictures).latent_dist.mode() * pipeline.vae.config.scaling_factor
        t = torch.tensor([t_sub, t_sub])
        text, _ = pipeline.encode_prompt(["a photo of a cup.", "a photo of a red chair."], "cpu", 1, False)
        pipeline.unet(scheduler.add_noise(latents, noise, t), t, text)
    assert set(features.tokens) == set(seen)
    assert features.mask is None
    for name, tokens in features.tokens.items():
        assert torch.allclose(tokens, seen[name], atol=1e-5)


def test_features_depend_on_the_subject_alone_unless_seeded(tiny_stack):
    encoder = SubjectEncoder(tiny_stack)
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    one, same = (encoder.encode(picture, ["cup"]) for _ in range(2))
    seeded = encoder.encode(picture, ["cup"], seeds=[1])
    other_class = encoder.encode(picture, ["lamp"])
    name = "mid_block.attentions.0.transformer_blocks.0"
    assert torch.equal(one.tokens[name], same.tokens[name])
    assert not torch.equal(one.tokens[name], seeded.tokens[name])
    assert not torch.equal(one.tokens[name], other_class.tokens[name])


def test_the_template_may_leave_the_class_out_and_braces_are_text(tiny_stack):
    encoder = SubjectEncoder(tiny_stack)
    picture = torch.zeros(1, 3, 32, 32)
    name = "mid_block.attentions.0.transformer_blocks.0"
    plain = encoder.encode(picture, ["cup"], template="a photo")
    assert torch.equal(plain.tokens[name], encoder.encode(picture, ["lamp"], template="a photo").tokens[name])
    encoder.encode(picture, ["{0} {x}"], template="{subject_class} {y}")
