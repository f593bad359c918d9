"""SAM as the one who knows where an object ends (arXiv 2304.02643)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ezigen.config import ConfigurationError
from ezigen.images.region import Found, Strength, bounding_box
from ezigen.models.location import find_sam
from ezigen.models.stack import no_progress_bars


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A frozen SAM with its own preprocessing."""

    network: Any
    processor: Any

    @torch.no_grad()
    def outline(self, picture: Image.Image, found: Found, strength: Strength) -> Found:
        """The object in an RGB picture of H x W pixels that lies about where it was found (H, W): SAM is asked with the
        box around it and the strongest point within it, and of its answers takes the one that it trusts most.
        """
        y, x = np.unravel_index(np.where(found, strength, -np.inf).argmax(), found.shape)
        inputs = self.processor(
            images=picture,
            input_boxes=[[[float(value) for value in bounding_box(found)]]],
            input_points=[[[[float(x), float(y)]]]],
            input_labels=[[[1]]],
            return_tensors="pt",
        ).to(self.network.device)
        output = self.network(**inputs, multimask_output=True)
        masks = self.processor.image_processor.post_process_masks(
            output.pred_masks.cpu(), inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu()
        )[0]
        best = int(output.iou_scores[0, 0].argmax())
        outlined: Found = masks[0, best].numpy().astype(np.bool_)
        return outlined


def load_segmenter(location: str, *, device: torch.device, option: str = "--set model.sketch.sam_model") -> Segmenter:
    """A SAM in fp32, frozen: a folder or a hub id such as facebook/sam-vit-base.

    option: which one of the command line names it. Raises ConfigurationError when it is missing or not a SAM.
    """
    from transformers import SamModel, SamProcessor

    folder = find_sam(location, option=option)
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
    try:
        with no_progress_bars():
            network: Any = SamModel.from_pretrained(folder, **options)
        processor = SamProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ConfigurationError(f"SAM {location}: {folder} does not load: {error}") from error
    return Segmenter(network.requires_grad_(False).eval().to(device), processor)
