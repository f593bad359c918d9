"""What a study's page holds and hides, and what is refused."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from ezigen.config import ConfigurationError
from tasks.reports.pictures import choose_side
from tasks.studies import QUESTIONS, StudyRequest, parse_questions, write_study
from tests.reports.rows import make_row
from tests.reports.test_page import HOSTILE, Page
from tests.studies.sets import COLOURS, write_folder, write_run, write_subjects

METHODS = ("secretmethod", "otherbaseline")


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, str]:
    """Two runs that have the items 2 to 9 in common; one draws larger images than the other."""
    folder = tmp_path_factory.mktemp("shop")
    write_subjects(folder, range(12))
    write_run(folder / "hiddenfolder1", METHODS[0], range(10), shop=folder, side=48)
    write_run(folder / "hiddenfolder2", METHODS[1], range(2, 12), shop=folder, side=96)
    return {METHODS[0]: str(folder / "hiddenfolder1"), METHODS[1]: str(folder / "hiddenfolder2")}


def make(folder: Path, sets: dict[str, str], **settings) -> tuple[Page, dict, str]:
    study = write_study(str(folder / "study.html"), StudyRequest(sets=sets, **settings))
    html = Path(study.page_uri).read_text("utf-8")
    return Page(html), json.loads(Path(study.key_uri).read_text("utf-8")), html


def pictures(page: Page) -> dict[str, Image.Image]:
    return {
        name: Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2])))
        for name, text in page.raw.items()
        if text.startswith("data:image/")
    }


def nearest_method(image: Image.Image) -> str:
    pixel = image.convert("RGB").getpixel((image.width // 2, image.height // 2))
    return min(COLOURS, key=lambda method: sum((a - b) ** 2 for a, b in zip(COLOURS[method], pixel, strict=True)))


def test_the_key_tells_what_the_page_hides(tmp_path, sets):
    page, key, _ = make(tmp_path, sets)
    shown = pictures(page)
    assert [case["case"] for case in key["cases"]] == [case["name"] for case in page.data["cases"]]
    assert {case["item"] for case in key["cases"]} == {make_row(index).item_id for index in range(2, 10)}
    for case in key["cases"]:
        assert set(case["labels"].values()) == set(METHODS)
        assert all(nearest_method(shown[f"image-{label}"]) == method for label, method in case["labels"].items())
    assert key["methods"] == sets
    assert key["study"] == page.data["study"]


def test_nothing_in_the_page_tells_the_method(tmp_path, sets):
    page, key, html = make(tmp_path, sets)
    for secret in (*METHODS, *sets.values(), "hiddenfolder", *(make_row(index).item_key for index in range(12))):
        assert secret not in html
    assert not any(case["item"] in html for case in key["cases"])
    shown = {name: image for name, image in pictures(page).items() if name.startswith("image-")}
    # One run made images of 48 px, the other of 96: here all are alike, and none carries anything but pixels.
    assert {(image.size, image.format, image.mode) for image in shown.values()} == {((96, 96), "WEBP", "RGB")}
    assert all(set(image.info) <= {"loop", "background", "duration", "timestamp"} for image in shown.values())
    # The place in the file follows the labels, and those are drawn (see below).
    assert all(case["labels"] == sorted(case["labels"]) for case in page.data["cases"])
    names = [name for name in page.raw if name.startswith("image-")]
    assert names == [f"image-{label}" for case in page.data["cases"] for label in case["labels"]]


def test_labels_cannot_be_computed_from_what_is_known(tmp_path, sets):
    _, first, _ = make(tmp_path / "a", sets, seed=3)
    _, second, _ = make(tmp_path / "b", sets, seed=3)
    assert [case["item"] for case in first["cases"]] == [case["item"] for case in second["cases"]]
    assert not {label for case in first["cases"] for label in case["labels"]} & {
        label for case in second["cases"] for label in case["labels"]
    }
    assert first["study"] != second["study"]


def test_the_seed_draws_the_cases(tmp_path, sets):
    drawn = {
        tuple(case["item"] for case in make(tmp_path / str(seed), sets, seed=seed, num_cases=3)[1]["cases"])
        for seed in range(4)
    }
    assert {len(set(items)) for items in drawn} == {3}
    assert len(drawn) > 1


def test_a_single_case_and_an_own_question(tmp_path, sets):
    page, key, _ = make(tmp_path, sets, num_cases=1, questions=parse_questions(["quality", "colour=Which colour?"]))
    assert len(page.data["cases"]) == 1
    assert key["questions"] == {"quality": QUESTIONS[2].text, "colour": "Which colour?"}
    assert "1 case, each with 2 questions" in " ".join(page.text.split())


def test_texts_are_never_interpreted(tmp_path):
    write_subjects(tmp_path, range(2))
    for method in METHODS:
        write_run(tmp_path / method, method, range(2), shop=tmp_path, prompt=HOSTILE)
    page, _, html = make(tmp_path, {method: str(tmp_path / method) for method in METHODS})
    assert [case["prompt"] for case in page.data["cases"]] == [HOSTILE, HOSTILE]
    assert "<img src=x" not in html
    assert not [tag for tag, attributes in page.tags if "onerror" in attributes]
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style")], tag


def test_the_policy_allows_no_pictures_from_the_folder(tmp_path, sets):
    page, _, _ = make(tmp_path, sets, num_cases=1)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert "img-src data:;" in policy


def test_on_an_object_store(sets):
    request = StudyRequest(sets, num_cases=2)
    study = write_study("memory://studies/blind/study.html", request)
    assert study.key_uri == "memory://studies/blind/study.key.json"
    with pytest.raises(ConfigurationError, match="answers may refer to it"):
        write_study("memory://studies/blind/study.html", request)


# ---- folders


def test_folders_are_matched_by_file_name(tmp_path):
    stems = ["cup-a", "cup-b", "cup-c"]
    sets = {
        METHODS[0]: str(write_folder(tmp_path / "one", METHODS[0], stems)),
        METHODS[1]: str(write_folder(tmp_path / "two", METHODS[1], stems[1:], suffix=".bmp")),
    }
    subjects = write_folder(tmp_path / "subjects", "thirdrival", stems)
    for stem in stems:
        (subjects / f"{stem}.txt").write_text(f"a photo of {stem}\n")
    page, key, _ = make(tmp_path, sets, subjects_uri=str(subjects))
    assert {case["item"] for case in key["cases"]} == {"cup-b", "cup-c"}
    assert {case["prompt"] for case in page.data["cases"]} == {"a photo of cup-b", "a photo of cup-c"}
    assert {case["subjects"] for case in page.data["cases"]} == {1}


def test_a_catalog_tells_what_folders_show(tmp_path):
    rows = [make_row(index, paint=None) for index in range(3)]
    write_subjects(tmp_path, range(3))
    lines = ["item_id,subject_uri,subject_class,prompt", f"{rows[0].item_id},,thing,"]
    lines += [f'{row.item_id},{row.subject_uri},thing,"{row.prompt}, in ""red"""' for row in rows[1:]]
    (tmp_path / "catalog.csv").write_text("\n".join(lines))
    stems = [row.item_id for row in rows]
    sets = {method: str(write_folder(tmp_path / method, method, stems)) for method in METHODS}
    study = write_study(str(tmp_path / "s.html"), StudyRequest(sets, catalog_uri=str(tmp_path / "catalog.csv")))
    assert (study.num_cases, study.num_common) == (2, 3)
    assert list(study.left_out) == [rows[0].item_id]  # its row is refused
    assert "no prompt" in study.left_out[rows[0].item_id]
    prompts = {case["prompt"] for case in Page(Path(study.page_uri).read_text("utf-8")).data["cases"]}
    assert prompts == {f'{row.prompt}, in "red"' for row in rows[1:]}


def test_only_questions_that_need_a_subject_miss_it(tmp_path):
    sets = {method: str(write_folder(tmp_path / method, method, ["a"])) for method in METHODS}
    with pytest.raises(ConfigurationError, match=r"a: there is no prompt for it; give --catalog"):
        write_study(str(tmp_path / "s.html"), StudyRequest(sets))
    page, _, _ = make(tmp_path, sets, questions=parse_questions(["quality"]))
    assert page.data["cases"][0]["subjects"] == 0


# ---- what cannot be


def test_cases_without_an_image_are_replaced(tmp_path, sets):
    gone = tmp_path / "gone"
    output = write_run(gone, METHODS[1], range(2, 10))
    missing, broken = (output.image_path(make_row(index).item_key) for index in (4, 5))
    (gone / missing).unlink()
    (gone / broken).write_bytes(b"no picture")
    request = StudyRequest({METHODS[0]: sets[METHODS[0]], METHODS[1]: str(gone)}, num_cases=6)
    study = write_study(str(tmp_path / "s.html"), request)
    assert study.num_cases == 6
    assert set(study.left_out) <= {make_row(4).item_id, make_row(5).item_id}
    everything = write_study(
        str(tmp_path / "t.html"), StudyRequest({METHODS[0]: sets[METHODS[0]], METHODS[1]: str(gone)})
    )
    assert set(everything.left_out) == {make_row(4).item_id, make_row(5).item_id}
    assert "does not exist" in everything.left_out[make_row(4).item_id]


def test_different_prompts_are_no_comparison(tmp_path, sets):
    write_run(tmp_path / "other", METHODS[1], range(2, 4), prompt="something else")
    request = StudyRequest({METHODS[0]: sets[METHODS[0]], METHODS[1]: str(tmp_path / "other")})
    with pytest.raises(ConfigurationError, match=r"none of 2 common cases can be shown; .*different prompts"):
        write_study(str(tmp_path / "s.html"), request)


def test_sets_without_a_common_case_are_refused(tmp_path, sets):
    folder = write_folder(tmp_path / "one", METHODS[1], ["x"])
    request = StudyRequest({METHODS[0]: sets[METHODS[0]], METHODS[1]: str(folder)})
    with pytest.raises(ConfigurationError, match=r"no case in common \(secretmethod has 10, .* has 1, such as 'x'\)"):
        write_study(str(tmp_path / "s.html"), request)


def test_one_set_is_refused(tmp_path, sets):
    with pytest.raises(ConfigurationError, match="compares 2 to 9"):
        write_study(str(tmp_path / "s.html"), StudyRequest({METHODS[0]: sets[METHODS[0]]}))
    with pytest.raises(ConfigurationError, match="neither the output of a run nor a folder of images"):
        write_study(str(tmp_path / "s.html"), StudyRequest({METHODS[0]: sets[METHODS[0]], "x": str(tmp_path)}))
    assert not list(tmp_path.iterdir())


def test_a_study_is_never_replaced(tmp_path, sets):
    make(tmp_path, sets, num_cases=1)
    with pytest.raises(ConfigurationError, match="answers may refer to it"):
        make(tmp_path, sets, num_cases=1)
    (tmp_path / "study.html").unlink()
    with pytest.raises(ConfigurationError, match=r"study\.key\.json exists"):
        make(tmp_path, sets, num_cases=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["beauty"], "is unknown; use flexibility, identity, quality"),
        (["quality", "quality"], "given twice"),
        (["colour="], "write NAME=TEXT"),
    ],
)
def test_wrong_questions(given, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_questions(given)


def test_five_hundred_cases(tmp_path):
    sets = {
        method: str(write_folder(tmp_path / method, method, [f"{n:03d}" for n in range(500)])) for method in METHODS
    }
    study = write_study(str(tmp_path / "s.html"), StudyRequest(sets, parse_questions(["quality"])))
    assert study.num_cases == 500
    assert study.page_bytes < 1_000_000
    page = Page(Path(study.page_uri).read_text("utf-8"))
    assert len(page.data["cases"]) == 500
    assert len(pictures(page)) == 1000


def test_more_images_are_smaller_ones():
    """About 0.2 bytes per pixel in the page, so that the largest of these pages has some 40 MB."""
    assert [choose_side(count) for count in (100, 1000, 2000, 20_000)] == [512, 384, 256, 192]
