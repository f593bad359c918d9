"""Pictures in and out: decoding what strangers upload, encoding what is kept. Needs no torch."""

from ezigen.images.encode import SUFFIXES, ImageFormat, encode_image, encode_png, side_by_side, thumbnail_strip, tiled
from ezigen.images.picture import FORMATS, Picture, decode_picture, fit_square, to_picture

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "ImageFormat",
    "Picture",
    "decode_picture",
    "encode_image",
    "encode_png",
    "fit_square",
    "side_by_side",
    "thumbnail_strip",
    "tiled",
    "to_picture",
]
