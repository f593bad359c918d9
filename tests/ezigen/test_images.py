"""Every kind of picture that a catalog may hold, and every kind that must be refused."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageColor, features

from ezigen.config import ErrorCode, ItemError
from ezigen.images import decode_picture, encode_image, encode_png, fit_square, side_by_side, thumbnail_strip, tiled

RED = (200, 30, 40)


def encode(image, format_="PNG", **options):
    buffer = BytesIO()
    image.save(buffer, format=format_, **options)
    return buffer.getvalue()


def disc(mode="RGBA", size=40):
    """A red disc on nothing."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    alpha = np.where(x**2 + y**2 < (size * 0.4) ** 2, 255, 0).astype(np.uint8)
    rgba = np.dstack([*(np.full_like(alpha, value) for value in RED), alpha])
    return Image.fromarray(rgba, "RGBA").convert(mode)


def centre(picture):
    return picture.rgb.getpixel((picture.rgb.width // 2, picture.rgb.height // 2))


def refusal(data, **bounds):
    with pytest.raises(ItemError) as error:
        decode_picture(data, **bounds)
    return error.value


def test_alpha_becomes_white_and_the_mask():
    picture = decode_picture(encode(disc()))
    assert picture.rgb.mode == "RGB"
    assert centre(picture) == RED
    assert picture.rgb.getpixel((0, 0)) == (255, 255, 255)
    assert picture.mask.mode == "L"
    assert picture.mask.getpixel((20, 20)) == 255
    assert picture.mask.getpixel((0, 0)) == 0


def test_half_transparent_pixels_mix_with_white():
    picture = decode_picture(encode(Image.new("RGBA", (16, 16), (0, 0, 0, 128))))
    assert centre(picture) == (127, 127, 127)
    assert picture.mask.getpixel((3, 3)) == 128


def test_opaque_alpha_gives_no_mask():
    assert decode_picture(encode(Image.new("RGBA", (16, 16), (*RED, 255)))).mask is None


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA"])
def test_modes_of_png(mode):
    source = disc("RGBA").convert(mode) if mode != "RGB" else disc().convert("RGB")
    picture = decode_picture(encode(source))
    assert picture.rgb.mode == "RGB"
    assert (picture.mask is not None) == (mode in ("LA", "P"))


def test_palette_with_transparency():
    image = Image.new("P", (16, 16), 0)
    image.putpalette([0, 0, 0, *RED])
    image.paste(1, (4, 4, 12, 12))
    picture = decode_picture(encode(image, transparency=0))
    assert picture.rgb.getpixel((0, 0)) == (255, 255, 255)
    assert centre(picture) == RED
    assert picture.mask.getextrema() == (0, 255)


def test_cmyk_jpeg():
    picture = decode_picture(encode(Image.new("RGB", (32, 32), RED).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(np.subtract(centre(picture), RED)).max() < 10


def test_16_bit_grey_is_scaled_not_cut():
    values = np.linspace(0, 65_535, 64 * 64, dtype=np.uint16).reshape(64, 64)
    picture = decode_picture(encode(Image.fromarray(values)))
    assert np.array_equal(np.asarray(picture.rgb)[..., 0], np.rint(values / 257).astype(np.uint8))


def test_16_bit_rgb_png():
    rows = b"".join(b"\0" + struct.pack(">3H", 51_400, 7_710, 10_280) * 16 for _ in range(16))
    data = png(16, 16, rows, bit_depth=16, colour_type=2)
    assert centre(decode_picture(data)) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = Image.new("RGB", (48, 32), (255, 255, 255))
    upright.paste(RED, (0, 0, 24, 16))  # red top left
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for transpose in undo.get(orientation, []):
        stored = stored.transpose(transpose)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decode_picture(encode(stored, "PNG", exif=exif))
    assert picture.rgb.size == (48, 32)
    assert np.array_equal(np.asarray(picture.rgb), np.asarray(upright))


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(format_):
    frames = [Image.new("RGB", (24, 24), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = encode(frames[0], format_, save_all=True, append_images=frames[1:], duration=100, **options)
    assert Image.open(BytesIO(data)).n_frames == 3
    assert centre(decode_picture(data)) == RED


@pytest.mark.parametrize("format_", ["BMP", "TIFF", "WEBP", "AVIF"])
def test_other_formats(format_):
    if format_ == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    picture = decode_picture(encode(Image.new("RGB", (32, 32), RED), format_))
    assert np.abs(np.subtract(centre(picture), RED)).max() < 12


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"this is no picture at all, whatever its name says",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n",
        encode(disc())[:60],
        encode(disc())[:-40],
        encode(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")[:700],
        b"\x89PNG\r\n\x1a\n",
        encode(Image.new("F", (16, 16)), "TIFF"),
    ],
    ids=["empty", "text", "eps", "short png", "truncated png", "truncated jpeg", "png magic", "float tiff"],
)
def test_undecodable(data):
    assert refusal(data).code is ErrorCode.IMAGE_UNDECODABLE


def test_too_small():
    error = refusal(encode(Image.new("RGB", (1, 1))))
    assert error.code is ErrorCode.IMAGE_TOO_SMALL
    assert "1 x 1" in error.message


def test_a_huge_header_is_refused_before_decoding():
    data = png(30_000, 30_000, b"\0" * 100)  # would fail as truncated if it were decoded
    assert refusal(data).code is ErrorCode.IMAGE_TOO_LARGE


@pytest.mark.parametrize("size", [(16_000, 11_000), (17_000, 8)])
def test_a_real_bomb_is_refused_before_decoding(size):
    bomb = encode(Image.new("1", size))
    assert len(bomb) < 100_000
    assert refusal(bomb).code is ErrorCode.IMAGE_TOO_LARGE


def test_a_jpeg_of_endless_scans_is_refused_before_decoding():
    """Each of these repeats costs the sender 53 bytes, and a decoder a pass over all pixels."""
    data = encode(disc("L"), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xc4") : -2]
    assert decode_picture(data[:-2] + scan * 90 + data[-2:]).rgb.size == (40, 40)
    error = refusal(data[:-2] + scan * 100 + data[-2:])
    assert error.code is ErrorCode.IMAGE_TOO_LARGE
    assert "scans" in error.message
    behind = data + scan * 100  # phones put films there
    assert decode_picture(behind).rgb.size == (40, 40)
    noise = encode(Image.effect_noise((300, 300), 90).convert("RGB"), "JPEG", quality=100, progressive=True)
    assert decode_picture(noise).rgb.size == (300, 300)


@pytest.mark.parametrize("compression", [1, 8])
def test_a_tiff_of_huge_tiles_is_refused_before_decoding(compression):
    tags = {256: 64, 257: 64, 258: 8, 259: compression, 262: 1, 277: 1, 322: 30_000, 323: 30_000, 324: 8, 325: 20}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    data = b"II*\0" + struct.pack("<I", 28) + zlib.compress(bytes(9)).ljust(20, b"\0")
    data += struct.pack("<H", len(tags)) + entries + bytes(4)
    error = refusal(data)
    assert error.code is ErrorCode.IMAGE_TOO_LARGE
    assert "tiles are 30000 x 30000 px" in error.message


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_texts_that_unpack_to_much_are_refused(kind):
    head = {b"zTXt": b"Comment\0\0", b"iTXt": b"Comment\0\1\0\0\0", b"iCCP": b"profile\0\0"}[kind]
    text = png_chunk(kind, head + zlib.compress(bytes(50_000_000)))
    whole = encode(Image.new("L", (16, 16)))
    start = len(b"\x89PNG\r\n\x1a\n") + 25  # behind IHDR
    assert refusal(whole[:start] + text + whole[start:]).code is ErrorCode.IMAGE_UNDECODABLE


@pytest.mark.parametrize("format_", ["PPM", "TGA", "ICO", "PCX", "SGI", "DDS", "JPEG2000"])
def test_no_other_decoder_is_tried(format_):
    assert refusal(encode(Image.new("RGB", (32, 32), RED), format_)).code is ErrorCode.IMAGE_UNDECODABLE


def test_bounds_are_arguments():
    data = encode(Image.new("RGB", (100, 50)))
    assert refusal(data, max_side_px=99).code is ErrorCode.IMAGE_TOO_LARGE
    assert refusal(data, max_pixels=4_999).code is ErrorCode.IMAGE_TOO_LARGE
    assert refusal(data, min_side_px=51).code is ErrorCode.IMAGE_TOO_SMALL
    assert decode_picture(data, max_side_px=100, max_pixels=5_000, min_side_px=50).rgb.size == (100, 50)


def test_fit_square_pads_and_never_squashes():
    wide = Image.new("RGB", (80, 40), RED)
    picture = fit_square(decode_picture(encode(wide)), 64)
    pixels = np.asarray(picture.rgb)
    assert pixels.shape == (64, 64, 3)
    assert (pixels[:14] == 255).all()
    assert (pixels[18:46] == RED).all()
    assert (pixels[50:] == 255).all()


def test_fit_square_takes_the_mask_along():
    picture = fit_square(decode_picture(encode(disc().resize((40, 20)))), 32)
    assert picture.mask.size == (32, 32)
    assert picture.mask.getpixel((16, 2)) == 0
    assert picture.mask.getpixel((16, 16)) == 255


def test_png_depends_on_pixels_alone():
    image = disc("RGB")
    with_facts = Image.open(BytesIO(encode(image, "PNG", dpi=(300, 300))))
    assert encode_png(image) == encode_png(with_facts)
    assert np.array_equal(np.asarray(Image.open(BytesIO(encode_png(image)))), np.asarray(image))


@pytest.mark.parametrize(("image_format", "largest"), [("png", 0), ("jpeg", 40), ("webp", 60)])
def test_image_formats(image_format, largest):
    image = disc("RGB")
    data = encode_image(image, image_format, 95)
    again = Image.open(BytesIO(data))
    assert again.format == image_format.upper()
    assert np.abs(np.asarray(again.convert("RGB"), int) - np.asarray(image)).max() <= largest
    assert encode_image(Image.open(BytesIO(encode(image, "PNG", dpi=(300, 300)))), image_format, 95) == data


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_quality_is_paid_for_in_bytes(image_format):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    assert len(encode_image(noise, image_format, 95)) > 1.5 * len(encode_image(noise, image_format, 40))


def test_thumbnail_strip():
    strip = Image.open(BytesIO(thumbnail_strip([disc("RGB"), Image.new("RGB", (200, 100), RED)], side_px=48)))
    assert strip.format == "JPEG"
    assert strip.size == (96, 48)
    assert np.abs(np.subtract(strip.getpixel((72, 24)), RED)).max() < 12
    assert min(strip.getpixel((72, 2))) > 240


def png(width, height, pixels, bit_depth=8, colour_type=0):
    """A PNG written by hand, so that its header can lie."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(pixels)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(("count", "columns"), [(2, 2), (3, 2), (4, 2), (5, 3)])
def test_several_pictures_are_tiled_and_one_stays_as_it_is(count, columns):
    colours = ["#ff0000", "#00ff00", "#0000ff", "#ffff00", "#00ffff"][:count]
    tiles = tiled([Image.new("RGB", (10, 10), colour) for colour in colours], side_px=60)
    assert tiles.size == (60, 60)
    cell = 60 // columns
    for index, colour in enumerate(colours):
        middle = (index % columns * cell + cell // 2, index // columns * cell + cell // 2)
        assert tiles.getpixel(middle) == ImageColor.getrgb(colour)
    one = Image.new("RGB", (7, 5), RED)
    assert tiled([one]) is one


def test_pictures_side_by_side_stay_as_they_are():
    row = side_by_side([Image.new("RGB", (4, 3), RED), Image.new("L", (5, 6), 0)], gap_px=2)
    assert row.size == (11, 6)
    assert [row.getpixel(at) for at in ((3, 2), (4, 0), (0, 4), (6, 5))] == [RED, (255,) * 3, (255,) * 3, (0, 0, 0)]
