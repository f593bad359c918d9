"""The object for notebooks: what goes in, what comes out, what is shown on the way."""

import io

import numpy as np
import pytest
from PIL import Image

from ezigen import Personalizer
from ezigen.config import ConfigurationError, ErrorCode, ItemError, LoopConfig, SamplerConfig
from ezigen.images import Picture, to_picture
from ezigen.sampling import Generator
from tests.ezigen.test_sampling import array, picture

SAMPLER = SamplerConfig(num_steps=5, guidance_scale=3.0, loops=LoopConfig(stop="fixed", num_loops=1))


@pytest.fixture
def personalizer(tiny_stack, adapters):
    return Personalizer(Generator(tiny_stack, adapters, None, SAMPLER))


def saved(folder, name="cup.png", colour=(200, 30, 30, 255), size=(40, 30)):
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    image.paste(colour, (10, 5, 30, 25))
    path = folder / name
    image.save(path)
    return path


def test_a_path_bytes_and_a_picture_are_the_same_subject(personalizer, tmp_path):
    path = saved(tmp_path)
    with Image.open(path) as opened:
        kinds = [path, str(path), path.read_bytes(), opened.copy(), to_picture(path)]
    images = [personalizer.generate(kind, "a photo of a cup", subject_class="cup").image for kind in kinds]
    assert len({image.tobytes() for image in images}) == 1
    assert personalizer.generate(path, "a photo of a cup", subject_class="cup", seed=1).image != images[0]


def test_what_is_no_picture_is_refused(personalizer, tmp_path):
    with pytest.raises(TypeError, match="not int"):
        personalizer.generate(3, "a cup")
    with pytest.raises(FileNotFoundError):
        personalizer.generate(tmp_path / "nothing.png", "a cup")
    with pytest.raises(ItemError) as caught:
        personalizer.generate(b"no picture", "a cup")
    assert caught.value.code is ErrorCode.IMAGE_UNDECODABLE


def test_an_upright_picture_with_alpha():
    rotated = Image.new("RGB", (20, 10), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    rotated.save(buffer, "JPEG", exif=exif)
    assert to_picture(Image.open(buffer)).rgb.size == (10, 20)
    clear = to_picture(Image.new("RGBA", (8, 8), (255, 0, 0, 0)))
    assert clear.rgb.getpixel((0, 0)) == (255, 255, 255)
    assert clear.mask is not None


def test_previews_come_at_every_step_asked_for(personalizer):
    seen = []
    sample = personalizer.generate(picture(0), "a cup", on_preview=seen.append, preview_every=2)
    assert [(p.phase, p.loop, p.step) for p in seen] == [
        ("text", 0, 2),
        ("transfer", 0, 4),
        ("transfer", 1, 4),
    ]
    assert all(p.image.size == sample.image.size for p in seen)
    assert len({p.key for p in seen}) == 1


def test_an_error_of_the_preview_ends_the_work(personalizer):
    def stop(_preview):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        personalizer.generate(picture(0), "a cup", on_preview=stop, preview_every=1)


def test_an_edit_changes_the_box_alone(personalizer, tmp_path):
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8))
    mask = Image.new("L", source.size)
    mask.paste(255, (10, 8, 30, 28))
    mask.save(tmp_path / "mask.png")
    by_box = personalizer.edit(source, picture(1), "a cup", box=(10, 8, 30, 28)).image
    by_mask = personalizer.edit(source, picture(1), "a cup", mask=tmp_path / "mask.png").image
    assert by_box.tobytes() == by_mask.tobytes()
    assert by_box.size == source.size
    changed = np.abs(array(by_box) - array(source)).max(axis=2) > 0
    rows = np.nonzero(changed)[0]
    assert 0 < rows.min() < rows.max() < 36
    assert changed[10:26, 12:28].mean() > 0.9
    assert not changed[:, 45:].any()


def test_an_interpolation_begins_and_ends_with_its_subjects(personalizer):
    strip = personalizer.interpolate(picture(0), picture(9), "a cup", num_images=3, subject_classes=("cup", "dog"))
    first = personalizer.generate(picture(0), "a cup", subject_class="cup").image
    last = personalizer.generate(picture(9), "a cup", subject_class="dog").image
    images = [sample.image for sample in strip]
    assert np.abs(array(images[0]) - array(first)).max() <= 1  # other batch mates
    assert np.abs(array(images[2]) - array(last)).max() <= 1
    assert images[1].tobytes() not in {images[0].tobytes(), images[2].tobytes()}
    with pytest.raises(ConfigurationError, match="both ends"):
        personalizer.interpolate(picture(0), picture(9), "a cup", num_images=1)


def test_several_subjects(personalizer):
    both = [picture(0), picture(9)]
    one = personalizer.generate(both, "a cup and a dog", subject_class="cup").image
    each = personalizer.generate(both, "a cup and a dog", subject_class=["cup", "dog"]).image
    assert one.tobytes() != each.tobytes()
    with pytest.raises(ItemError, match="3 entries for 2 pictures"):
        personalizer.generate(both, "a cup", subject_class=["cup", "dog", "cat"])


def test_the_embedded_model_loads_by_its_name():
    made = Personalizer.load(sampler=SAMPLER)
    sample = made.generate(Picture(Image.new("RGB", (64, 64), "red")), "a photo of a fruit on a beach")
    assert sample.image.size == (64, 64)
    assert made.sampler is SAMPLER
    with pytest.raises(ConfigurationError, match="speed 'fast' is unknown; use one of exact, balanced, draft"):
        Personalizer.load(speed="fast")
    with pytest.raises(ConfigurationError, match="sampler 'nice' is unknown"):
        Personalizer.load(sampler="nice")
