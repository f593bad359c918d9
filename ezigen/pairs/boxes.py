"""Boxes in pixels."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels: (x, y) is its upper left corner, x to the right, y downwards."""

    x: float
    y: float
    width: float
    height: float

    def to_list(self) -> list[float]:
        """x, y, width, height."""
        return [float(self.x), float(self.y), float(self.width), float(self.height)]

    @classmethod
    def from_list(cls, values: list[float]) -> Self:
        """The box of `to_list`."""
        x, y, width, height = values
        return cls(x, y, width, height)

    def seen_in(self, crop: "Box", size_px: int) -> "Box":
        """The box in the pixels of the square picture of `size_px` that shows `crop`; cut off at its borders."""
        scale_x, scale_y = size_px / crop.width, size_px / crop.height
        left, right = (min(max((x - crop.x) * scale_x, 0.0), size_px) for x in (self.x, self.x + self.width))
        top, bottom = (min(max((y - crop.y) * scale_y, 0.0), size_px) for y in (self.y, self.y + self.height))
        return Box(left, top, right - left, bottom - top)
