import io
import json

import pytest
from PIL import Image

from ezigen.config import BenchmarkConfig
from tasks.evaluation import read_benchmark

PROMPTS_AND_CLASSES = """Classes

subject_name,class
backpack_dog,backpack
cat2,cat
wolf_plushie,stuffed animal

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
"a {0} {1} on top of the sidewalk, at the artist's".format(unique_token, class_token),
'a cube shaped {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a {0} {1} in a chef outfit'.format(unique_token, class_token),
'a cube shaped {0} {1}'.format(unique_token, class_token)
]
"""


def picture(shade, kind="JPEG"):
    """The bytes of a small picture; another shade is another picture."""
    file = io.BytesIO()
    Image.new("RGB", (16, 12), (shade, 90, 200)).save(file, kind)
    return file.getvalue()


def put_picture(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(shade, "PNG" if path.suffix == ".png" else "JPEG"))


def put_words(path, words):
    path.write_text(json.dumps(words))


@pytest.fixture
def dreambench(tmp_path):
    """DreamBench as published, with three subjects."""
    root = tmp_path / "dreambooth"
    for shade, name in enumerate(
        ("backpack_dog/02", "backpack_dog/00", "cat2/01", "wolf_plushie/00", "wolf_plushie/05")
    ):
        put_picture(root / "dataset" / f"{name}.jpg", shade)
    (root / "dataset" / "prompts_and_classes.txt").write_text(PROMPTS_AND_CLASSES)
    (root / "dataset" / "references_and_licenses.txt").write_text("Unsplash")
    (root / "dataset" / ".DS_Store").write_bytes(b"\0")
    (root / "README.md").write_text("# DreamBooth")
    return root


@pytest.fixture
def dreamedit(dreambench):
    """DreamEditBench as published, with the subjects and masks that it lacks."""
    root = dreambench
    for name in ("cat2", "wolf_plushie"):
        for number in range(2):
            put_picture(root / "data" / "replacement_source" / name / f"found{number}.jpg", 50 + number)
            put_picture(root / "data" / "replacement_mask" / name / f"found{number}.png", 60 + number)
        put_picture(root / "data" / "addition_source" / name / "found0.jpg", 70)
    return root


@pytest.fixture
def people(tmp_path):
    """Three identities with a class word each."""
    root = tmp_path / "celeba"
    for name in ("000001", "000181", "000612"):
        put_picture(root / name / "0.jpg", int(name) % 200)
        put_picture(root / name / "1.jpg", int(name) % 200 + 1)
    put_words(root / "classes.json", {"000001": "man", "000181": "man", "000612": "woman"})
    (root / "prompts.txt").write_text(
        "# accessories\na {subject_class} in a chef outfit\n\na {subject_class}  in snow\n"
    )
    return root


@pytest.fixture
def own(tmp_path):
    """Two subjects in folders, and one that is a single picture."""
    root = tmp_path / "own"
    for shade, name in enumerate(("red_mug2/front.jpg", "red_mug2/side.png", "x1/a.jpg", "lamp.jpg")):
        put_picture(root / name, shade)
    put_words(root / "classes.json", {"x1": "rocket"})
    (root / "prompts.txt").write_text("\ufeffa {subject_class} beside another {subject_class}\n")
    return root


@pytest.fixture
def read():
    def read(kind, folder, locations=None, **values):
        return read_benchmark(BenchmarkConfig(kind=kind, folder_uri=str(folder), **values), locations)

    return read
