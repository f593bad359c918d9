"""The cases of every benchmark, and what is said about folders that lack something."""

import csv
import json
import shutil
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ezigen.config import BenchmarkConfig, ConfigurationError
from ezigen.mini.edits import read_cases
from tasks.catalog.rows import parse_row
from tasks.datasets.catalogs import CATALOG_SCHEMA, read_catalog
from tasks.evaluation import catalog_rows
from tests.evaluation.conftest import put_picture, put_words


def problems(action):
    """The first line of the error, and the problems that it lists."""
    with pytest.raises(ConfigurationError) as raised:
        action()
    head, *listed = str(raised.value).split("\n- ")
    return head, listed


def names(uris):
    return [uri.rpartition("/")[2] for uri in uris]


def test_dreambench_is_every_subject_with_the_prompts_of_its_kind(dreambench, read):
    benchmark = read("dreambench", dreambench)
    assert (benchmark.name, benchmark.kind, benchmark.subset) == ("dreambench", "generation", "")
    assert len(benchmark.cases) == len({case.case_id for case in benchmark.cases}) == 3 * 3 * 6
    assert Counter(case.subject_id for case in benchmark.cases) == dict.fromkeys(
        ("backpack_dog", "cat2", "wolf_plushie"), 18
    )
    prompts = {(case.subject_id, case.prompt_id): case.prompt for case in benchmark.cases}
    assert prompts == {
        ("backpack_dog", "p00"): "a backpack in the jungle",
        ("backpack_dog", "p01"): "a backpack on top of the sidewalk, at the artist's",
        ("backpack_dog", "p02"): "a cube shaped backpack",
        ("cat2", "p00"): "a cat in the jungle",
        ("cat2", "p03"): "a cat in a chef outfit",
        ("cat2", "p02"): "a cube shaped cat",
        ("wolf_plushie", "p00"): "a stuffed animal in the jungle",
        ("wolf_plushie", "p01"): "a stuffed animal on top of the sidewalk, at the artist's",
        ("wolf_plushie", "p02"): "a cube shaped stuffed animal",
    }
    first = benchmark.cases[0]
    assert first.case_id == "backpack_dog/p00/r0"
    assert first.subject_class == "backpack"
    assert first.subject_uris == (f"{dreambench}/dataset/backpack_dog/00.jpg",)
    assert names(first.reference_uris) == ["00.jpg", "02.jpg"]
    assert (first.source_uri, first.mask_uri) == ("", "")


def test_the_dataset_folder_itself_is_the_same_benchmark(dreambench, read):
    assert read("dreambench", dreambench / "dataset").cases == read("dreambench", dreambench).cases


def test_prompts_are_read_and_never_evaluated(dreambench, read, tmp_path):
    path, trace = dreambench / "dataset" / "prompts_and_classes.txt", tmp_path / "trace"
    lines = [
        f"'a {{0}} {{1}}'.format(unique_token, open({str(trace)!r}, 'w').name),",
        f"open({str(trace)!r}, 'w'),",
        "'a {0} {1.__class__}'.format(unique_token, class_token),",
        "'a {0} thing'.format(unique_token, class_token),",
    ]
    path.write_text(path.read_text().replace("'a cube", "\n".join(lines) + "\n'a cube", 1))
    head, listed = problems(lambda: read("dreambench", dreambench))
    assert head.endswith("4 problems:")
    assert [text.partition(" is neither")[0].rpartition(" ")[2] for text in listed] == ["15", "16", "17", "18"]
    assert not trace.exists()


def test_seeds_depend_on_case_and_run_alone(dreambench, read):
    cases = read("dreambench", dreambench).cases
    seeds = {case.case_id: case.seed for case in cases}
    assert len(set(seeds.values())) == len(seeds)
    fewer = read("dreambench", dreambench, num_runs=2, num_subjects=2, num_prompts=2)
    assert len(fewer.cases) == 8
    assert fewer.subset == "2 of 3 subjects, 2 of 3 prompts"
    assert all(seeds[case.case_id] == case.seed for case in fewer.cases)
    assert set(fewer.cases) <= set(cases)


def test_several_pictures_are_given_as_far_as_an_image_takes_them(dreambench, read):
    for number in range(10, 14):
        put_picture(dreambench / "dataset" / "cat2" / f"{number}.jpg", number)
    case = next(
        case for case in read("dreambench", dreambench, subject_pictures="all").cases if case.subject_id == "cat2"
    )
    assert names(case.subject_uris) == ["01.jpg", "10.jpg", "11.jpg", "12.jpg"]
    assert names(case.reference_uris) == ["01.jpg", "10.jpg", "11.jpg", "12.jpg", "13.jpg"]


def test_the_digest_is_of_contents(dreambench, read, tmp_path):
    digest = read("dreambench", dreambench).digest
    assert len(bytes.fromhex(digest)) == 16
    copy = shutil.copytree(dreambench, tmp_path / "copy")
    assert read("dreambench", copy).digest == digest
    assert read("dreambench", copy, num_runs=1).digest != digest
    reference = copy / "dataset" / "backpack_dog" / "02.jpg"
    before = reference.read_bytes()
    put_picture(reference, shade=200)
    assert read("dreambench", copy).digest != digest, "another picture of the subject"
    reference.write_bytes(before)
    assert read("dreambench", copy).digest == digest
    prompts = copy / "dataset" / "prompts_and_classes.txt"
    prompts.write_text(prompts.read_text().replace("chef outfit", "police outfit"))
    assert read("dreambench", copy).digest != digest, "another prompt"


def test_everything_that_dreambench_lacks_is_said_at_once(dreambench, read):
    data = dreambench / "dataset"
    (data / "cat2" / "01.jpg").unlink()
    (data / "wolf_plushie" / "05.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (data / "backpack_dog" / "00.jpg").write_bytes(b"")
    put_picture(data / "vase" / "00.jpg")
    head, listed = problems(lambda: read("dreambench", dreambench))
    assert head == f"folder_uri {dreambench}: the benchmark cannot be used, 4 problems:"
    assert listed == [
        "dataset/vase: the class of this subject is unknown; prompts_and_classes.txt does not list it",
        "dataset/cat2: this subject has no picture",
        "dataset/backpack_dog/00.jpg is empty (0 bytes); copy it again",
        "dataset/wolf_plushie/05.jpg is not a picture (it starts with 'version https://git-'); download it again",
    ]


def test_a_folder_that_is_no_benchmark_is_named(tmp_path, read):
    for kind, missing in (
        ("dreambench", "prompts_and_classes.txt is missing"),
        ("dreamedit", "neither subjects.json nor data/replacement_source/"),
        ("people", "there are no subjects.*prompts.txt does not exist"),
        ("own", "there are no subjects.*prompts.txt does not exist"),
    ):
        with pytest.raises(ConfigurationError, match=f"(?s)folder_uri {tmp_path}.*{missing}"):
            read(kind, tmp_path)
    with pytest.raises(ConfigurationError, match="absent or empty"):
        read("dreambench", tmp_path / "none")


def test_files_that_are_links_are_read(dreambench, read, tmp_path):
    """Downloads of hubs are folders of links."""
    digest = read("dreambench", dreambench).digest
    linked = tmp_path / "linked"
    (linked / "dataset").mkdir(parents=True)
    for place in (dreambench / "dataset").iterdir():
        (linked / "dataset" / place.name).symlink_to(place)
    assert read("dreambench", linked).digest == digest


def test_dreamedit_as_published(dreamedit, read):
    benchmark = read("dreamedit", dreamedit)
    assert benchmark.kind == "editing"
    assert [case.case_id for case in benchmark.cases] == [
        "cat2/found0/r0", "cat2/found1/r0", "wolf_plushie/found0/r0", "wolf_plushie/found1/r0"
    ]  # fmt: skip
    case = benchmark.cases[3]
    assert (case.prompt_id, case.subject_class, case.prompt) == (
        "found1",
        "stuffed animal",
        "a photo of a stuffed animal",
    )
    assert case.source_uri == f"{dreamedit}/data/replacement_source/wolf_plushie/found1.jpg"
    assert case.mask_uri == f"{dreamedit}/data/replacement_mask/wolf_plushie/found1.png"
    assert names(case.subject_uris) == ["00.jpg"]
    assert names(case.reference_uris) == ["00.jpg", "05.jpg"]
    assert read("dreamedit", dreamedit, num_prompts=1).subset == "1 of 2 sources"


def test_the_digest_knows_sources_and_masks(dreamedit, read):
    digests = {read("dreamedit", dreamedit).digest}
    for place in ("replacement_source/cat2/found0.jpg", "replacement_mask/cat2/found0.png"):
        put_picture(dreamedit / "data" / place, shade=222)
        digests.add(read("dreamedit", dreamedit).digest)
    assert len(digests) == 3


def test_prompts_of_edits_may_be_given(dreamedit, read):
    put_words(dreamedit / "prompts.json", {"cat2/found1": "a {subject_class} on a sofa"})
    prompts = [case.prompt for case in read("dreamedit", dreamedit).cases]
    assert prompts == ["a photo of a cat", "a cat on a sofa", *["a photo of a stuffed animal"] * 2]
    put_words(dreamedit / "prompts.json", {"cat2/found1": "a cat on a sofa", "dog/found1": "a {subject_class}"})
    assert problems(lambda: read("dreamedit", dreamedit))[1] == [
        "prompts.json, cat2/found1 does not name the subject; write {subject_class} where its class goes: "
        "'a cat on a sofa'",
        "prompts.json has a prompt for 'dog/found1', which is no source",
    ]


def test_everything_that_dreamedit_lacks_is_said_at_once(dreamedit, read):
    data = dreamedit / "data"
    (data / "replacement_mask" / "cat2" / "found1.png").rename(data / "replacement_mask" / "cat2" / "found7.png")
    put_picture(data / "replacement_source" / "cat2" / "found0.png")
    shutil.rmtree(data / "replacement_mask" / "wolf_plushie")
    put_picture(data / "replacement_source" / "vase" / "found0.jpg")
    put_picture(data / "replacement_mask" / "vase" / "found0.png")
    assert set(problems(lambda: read("dreamedit", dreamedit))[1]) == {
        "vase: the class of this subject is unknown; dataset/prompts_and_classes.txt does not list it",
        "dataset/vase: this subject has no picture",
        "data/replacement_source/cat2/found0.png: there is also data/replacement_source/cat2/found0.jpg; "
        "keep one of them",
        "data/replacement_source/cat2/found1.jpg: this source has no mask; data/replacement_mask/cat2/found1.png is "
        "missing",
        "data/replacement_mask/cat2/found7.png: this mask has no source",
        "data/replacement_source/wolf_plushie: no source has a mask; data/replacement_mask/wolf_plushie/ is empty or "
        "missing",
    }
    shutil.rmtree(dreamedit / "dataset")
    listed = problems(lambda: read("dreamedit", dreamedit))[1]
    assert "put its dataset/ here" in listed[0]
    assert len(listed) == 5


def test_people_are_measured_against_the_picture_that_is_given(people, read):
    benchmark = read("people", people)
    assert benchmark.kind == "people"
    assert len(benchmark.cases) == 3 * 2 * 4
    case = benchmark.cases[-1]
    assert (case.case_id, case.subject_class, case.prompt) == ("000612/p01/r3", "woman", "a woman in snow")
    assert names(case.subject_uris) == names(case.reference_uris) == ["0.jpg"]
    (people / "classes.json").unlink()
    assert {case.prompt for case in read("people", people).cases} == {"a person in a chef outfit", "a person in snow"}


def test_everything_that_people_lack_is_said_at_once(people, read):
    put_words(people / "classes.json", {"000001": "actor", "000181": "man", "000999": "man"})
    (people / "prompts.txt").write_text("a {subject_class} in a {0}\na person in snow\n")
    assert problems(lambda: read("people", people))[1] == [
        "000001: the class 'actor' in classes.json is none of man, woman, person",
        "000612: the class of this identity is unknown; classes.json does not list it",
        "classes.json lists '000999', which has no folder",
        "prompts.txt, line 1 has braces that are not {subject_class}: 'a {subject_class} in a {0}'",
        "prompts.txt, line 2 does not name the subject; write {subject_class} where its class goes: 'a person in snow'",
    ]
    (people / "classes.json").write_text("[1]")
    assert "classes.json must be a JSON object" in problems(lambda: read("people", people))[1][0]


def test_own_subjects_are_called_as_their_folders_or_as_is_said(own, read):
    cases = read("own", own).cases
    assert [(case.case_id, case.subject_class) for case in cases] == [
        ("lamp/p00/r0", "lamp"), ("red_mug2/p00/r0", "red mug"), ("x1/p00/r0", "rocket")
    ]  # fmt: skip
    assert cases[1].prompt == "a red mug beside another red mug"
    assert names(cases[0].subject_uris) == ["lamp.jpg"]


def test_own_prompts_may_lie_elsewhere(own, read, tmp_path):
    (tmp_path / "scenes.txt").write_text("a {subject_class} at night\n")
    prompts_uri = str(tmp_path / "scenes.txt")
    assert {case.prompt for case in read("own", own, prompts_uri=prompts_uri).cases} == {
        "a lamp at night", "a red mug at night", "a rocket at night"
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match=f"prompts_uri {tmp_path}: none.txt does not exist"):
        read("own", own, prompts_uri=str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="dreambench brings its own prompts"):
        BenchmarkConfig(kind="dreambench", folder_uri="x", prompts_uri="y")


def test_everything_that_own_subjects_lack_is_said_at_once(own, read):
    (own / "empty").mkdir()
    put_picture(own / "007" / "a.jpg")
    put_picture(own / "red_mug2.png")
    (own / "prompts.txt").write_text("# none yet\n")
    assert set(problems(lambda: read("own", own))[1]) == {
        "empty: this subject has no picture",
        "007: the name says no class; give it in classes.json",
        "red_mug2.png: there is another subject 'red_mug2'; rename one of them",
        "prompts.txt has no prompts; write one per line, such as: a photo of a {subject_class} on a beach",
    }


def test_what_a_catalog_would_refuse_is_wrong_with_the_folder(own, read):
    put_picture(own / "bad\nname.jpg")
    with (own / "prompts.txt").open("a") as file:
        file.write("a {subject_class} " + "very " * 500 + "far\n")
    refused = problems(lambda: read("own", own))[1]
    assert len(refused) == 5
    assert [text for text in refused if "2,000" in text and "red_mug2, prompt p01" in text]
    assert [text for text in refused if "U+000A" in text and "\n" not in text]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_an_ordinary_catalog_reads_the_cases(dreamedit, read, suffix):
    benchmark = read("dreamedit", dreamedit, subject_pictures="all")
    rows, path = list(catalog_rows(benchmark)), dreamedit / f"catalog{suffix}"
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    found = [row for batch in read_catalog(str(path)) for row in batch.to_pylist()]
    assert set(rows[0]) < set(CATALOG_SCHEMA.names)
    parsed = [parse_row(index, row) for index, row in enumerate(found)]
    for case, row in zip(benchmark.cases, parsed, strict=True):
        assert (row.item_id, row.subject_uris, row.subject_class) == (
            case.case_id,
            case.subject_uris,
            case.subject_class,
        )
        assert (row.prompt, row.seed) == (case.prompt, case.seed)
        assert (row.source_uri, row.mask_uri, row.edits) == (case.source_uri, case.mask_uri, True)


def test_rows_that_generate_have_no_source(dreambench, read):
    row = {name: str(value) for name, value in next(catalog_rows(read("dreambench", dreambench))).items()}
    assert not parse_row(0, row).edits


@pytest.mark.parametrize(("kind", "num_cases"), [("mini-dreambench", 12 * 20), ("mini-people", 12 * 10)])
def test_the_world_is_written_once_and_the_same_everywhere(kind, num_cases, read, tmp_path):
    benchmark = read(kind, tmp_path / "a")
    assert len(benchmark.cases) == num_cases
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    assert read(kind, tmp_path / "a") == benchmark
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == written
    assert read(kind, tmp_path / "b").digest == benchmark.digest


def test_a_world_that_was_half_written_is_written_again(read, tmp_path):
    benchmark = read("mini-people", tmp_path)
    classes = Counter({case.subject_id: case.subject_class for case in benchmark.cases}.values())
    assert classes == {"bird": 6, "insect": 3, "sea animal": 3}, "identities share classes, as people do"
    (tmp_path / "mini-people-1" / "complete.json").unlink()
    (tmp_path / "mini-people-1" / "prompts.txt").unlink()
    assert read("mini-people", tmp_path) == benchmark


def test_the_worlds_edits_are_those_that_its_figures_are_measured_on(read, tmp_path):
    cases = read("mini-dreamedit", tmp_path).cases
    edits = list(read_cases(tmp_path / "mini-dreamedit-1"))
    assert len(cases) == len(edits) == 120
    for case, edit in zip(cases, edits, strict=True):
        assert f"{case.subject_id}/{case.prompt_id}" == edit.request.key
        assert (case.prompt, case.subject_class) == (edit.request.prompt, edit.request.subject_class)
        with Image.open(case.mask_uri) as mask:
            assert mask.convert("L").tobytes() == edit.edit.mask.tobytes()


def test_a_world_that_cannot_be_written_is_a_clear_error(read, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="the benchmark cannot be written there"):
        read("mini-people", tmp_path / "file")


@pytest.mark.slow
def test_a_benchmark_on_s3_is_that_of_the_disk(dreamedit, read, s3_folder, tmp_path):
    from tasks.storage.filesystems import open_filesystem

    open_filesystem("s3").put(str(dreamedit), s3_folder.removeprefix("s3://"), recursive=True)
    for kind in ("dreambench", "dreamedit"):
        found = read(kind, s3_folder)
        assert found.digest == read(kind, dreamedit).digest
        assert all(uri.startswith("s3://tests/") for case in found.cases for uri in case.picture_uris)
    world = read("mini-people", f"{s3_folder}/world")
    assert world.digest == read("mini-people", tmp_path / "world").digest
    assert read("mini-people", f"{s3_folder}/world") == world
    open_filesystem("s3").rm_file(f"{s3_folder}/data/replacement_mask/cat2/found0.png".removeprefix("s3://"))
    assert problems(lambda: read("dreamedit", s3_folder))[1] == [
        "data/replacement_source/cat2/found0.jpg: this source has no mask; data/replacement_mask/cat2/found0.png is "
        "missing"
    ]
