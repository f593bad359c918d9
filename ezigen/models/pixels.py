"""8-bit pictures to pixels in [-1, 1] and back."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_pixels(image: Image.Image) -> Tensor:
    """Pixels (3, H, W) in [-1, 1], fp32, of an RGB picture."""
    values = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32))
    return (values / 127.5 - 1).permute(2, 0, 1).contiguous()


def to_image(pixels: Tensor) -> Image.Image:
    """The 8-bit picture of pixels (3, H, W) in [-1, 1]; values outside are clipped."""
    values = (pixels.detach().float() * 127.5 + 127.5).round().clamp(0, 255).to("cpu", torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
