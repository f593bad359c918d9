"""Tiny text-to-image pipelines, and what goes with them, of real classes and random weights, in their own formats."""

from pathlib import Path
from typing import Any

import torch

from tests.tiny import CONTEXT_LENGTH, SCHEDULER, tiny_tokenizer

WIDTH = 32


def build_tiny_sdxl(folder: Path) -> Path:
    """Two text encoders and a UNet that is told the picture's size. Draws 32 px."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    torch.manual_seed(1)
    tokenizer = tiny_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * WIDTH,
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    parts = {
        "unet": unet,
        "vae": _vae(4),
        "scheduler": DDIMScheduler(**{k: v for k, v in SCHEDULER.items() if not k.startswith("_")}),
        "text_encoder": _clip(tokenizer, projects=False),
        "text_encoder_2": _clip(tokenizer, projects=True),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
    }
    return _save(StableDiffusionXLPipeline(**parts, add_watermarker=False), folder)


def build_tiny_sd3(folder: Path) -> Path:
    """A diffusion transformer with three text encoders. Draws 32 px."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(2)
    tokenizer, (t5, t5_tokenizer) = tiny_tokenizer(), _t5()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
    )
    parts = {
        "transformer": transformer,
        "vae": _vae(16),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": _clip(tokenizer, projects=True),
        "text_encoder_2": _clip(tokenizer, projects=True),
        "text_encoder_3": t5,
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "tokenizer_3": t5_tokenizer,
    }
    return _save(StableDiffusion3Pipeline(**parts), folder)


def build_tiny_flux(folder: Path, *, guidance_embeds: bool = False) -> Path:
    """A diffusion transformer with packed latents; without guidance_embeds it is a few-step model, as FLUX schnell."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(3)
    tokenizer, (t5, t5_tokenizer) = tiny_tokenizer(), _t5()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    parts = {
        "transformer": transformer,
        "vae": _vae(4),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "text_encoder": _clip(tokenizer, projects=False),
        "text_encoder_2": t5,
        "tokenizer": tokenizer,
        "tokenizer_2": t5_tokenizer,
    }
    return _save(FluxPipeline(**parts), folder)


def build_tiny_sam(folder: Path) -> Path:
    """A SAM of random weights for pictures of 64 px."""
    from transformers import SamConfig, SamModel, SamProcessor
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    torch.manual_seed(4)
    config = SamConfig(
        vision_config={
            "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 8, "mlp_dim": 32, "global_attn_indexes": [0], "window_size": 4,
            "num_pos_feats": 8,
        },
        prompt_encoder_config={
            "hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4, "image_embedding_size": 8,
        },
        mask_decoder_config={
            "hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
            "iou_head_hidden_dim": 16,
        },
    )  # fmt: skip
    SamModel(config).save_pretrained(folder)
    processor = SamImageProcessorPil(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 16}
    )
    SamProcessor(processor).save_pretrained(folder)
    return folder


def build_tiny_ip_adapter(folder: Path, unet: Any, *, is_xl: bool = False) -> Path:
    """An IP-Adapter of random weights for a UNet, in the layout of h94/IP-Adapter: for pictures of 32 px."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(5)
    models, projection_dim = folder / ("sdxl_models" if is_xl else "models"), 16
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32,
        patch_size=8, projection_dim=projection_dim,
    )  # fmt: skip
    CLIPVisionModelWithProjection(vision).save_pretrained(models / "image_encoder")
    text_width = unet.config.cross_attention_dim
    projection = ImageProjection(
        image_embed_dim=projection_dim, cross_attention_dim=text_width, num_image_text_embeds=4
    )
    weights = {
        f"image_proj.{name.replace('image_embeds', 'proj')}": tensor.contiguous()
        for name, tensor in projection.state_dict().items()
    }
    texts = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    for number, attention in enumerate(texts):
        processor = IPAdapterAttnProcessor2_0(attention.to_q.in_features, text_width, num_tokens=(4,))
        for name, tensor in processor.state_dict().items():
            weights[f"ip_adapter.{2 * number + 1}.{name.replace('.0.', '.')}"] = 2 * tensor
    save_file(weights, models / ("ip-adapter_sdxl.safetensors" if is_xl else "ip-adapter_sd15.safetensors"))
    return folder


def _save(pipeline: Any, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    return folder


def _vae(channels: int) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=32,
        scaling_factor=0.5,
        shift_factor=0.0,
        force_upcast=False,
        use_quant_conv=channels == 4,
        use_post_quant_conv=channels == 4,
    )


def _clip(tokenizer: Any, *, projects: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        projection_dim=WIDTH,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
        pad_token_id=len(tokenizer) - 1,
    )
    return (CLIPTextModelWithProjection if projects else CLIPTextModel)(config)


def _t5() -> tuple[Any, Any]:
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz.,"]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=CONTEXT_LENGTH)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=2 * WIDTH, d_kv=8, d_ff=64, num_layers=1, num_heads=4, pad_token_id=0
    )
    return T5EncoderModel(config), tokenizer
