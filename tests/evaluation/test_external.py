import hashlib

import pytest
from PIL import Image

from ezigen.config import BenchmarkConfig, ConfigurationError
from ezigen.images import encode_png
from tasks.evaluation import read_benchmark
from tasks.evaluation.external import read_external
from tasks.storage import OutputFolder, RunOutput
from tests.evaluation.results import done_row


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    config = BenchmarkConfig(kind="mini-dreambench", folder_uri=str(folder), num_subjects=2, num_prompts=2, num_runs=1)
    return read_benchmark(config)


def picture(colour):
    return encode_png(Image.new("RGB", (8, 8), colour))


def test_a_folder_is_matched_by_the_cases_names(benchmark, tmp_path):
    folder, cases = OutputFolder(str(tmp_path)), benchmark.cases
    for case, colour in zip(cases[:3], ("red", "green", "blue"), strict=True):
        folder.write(f"{case.case_id}.png", picture(colour))
    folder.write("notes/readme.txt", b"not an image")
    folder.write(f"{cases[3].case_id}.txt", b"neither")
    found = read_external("other", str(tmp_path), [benchmark])[benchmark.name]
    assert list(found.images) == [case.case_id for case in cases[:3]]
    image = found.images[cases[1].case_id]
    assert image.uri == folder.uri(f"{cases[1].case_id}.png")
    assert image.sha256 == hashlib.sha256(picture("green")).hexdigest()


def test_an_output_is_matched_by_its_item_ids(benchmark, tmp_path):
    output, case = RunOutput(str(tmp_path)), benchmark.cases[1]
    stored = output.write_image("0" * 32, picture("red"))
    rows = [done_row(case.case_id, "0" * 32, stored), done_row("somebody else", "1" * 32, stored)]
    output.write_results("20260101T000000Z-abcdef", 0, rows)
    found = read_external("other", str(tmp_path), [benchmark])[benchmark.name]
    assert list(found.images) == [case.case_id]
    assert found.images[case.case_id].uri == output.uri(stored.uri)


def test_a_place_without_any_image_of_the_benchmark_says_how_to_call_them(benchmark, tmp_path):
    OutputFolder(str(tmp_path)).write("r0.png", picture("red"))
    with pytest.raises(ConfigurationError, match=f"call them {benchmark.cases[0].case_id}.png, "):
        read_external("other", str(tmp_path), [benchmark])
    with pytest.raises(ConfigurationError, match="has no image of mini-dreambench"):
        read_external("other", str(tmp_path / "absent"), [benchmark])


def test_of_several_benchmarks_those_are_given_that_have_images(benchmark, tmp_path):
    """As the tables of the paper need them: other methods rarely come with images of all."""
    config = BenchmarkConfig(kind="mini-people", folder_uri=str(tmp_path / "people"), num_subjects=1, num_prompts=1)
    people, images = read_benchmark(config), tmp_path / "images"
    OutputFolder(str(images)).write(f"{benchmark.cases[0].case_id}.png", picture("red"))
    assert list(read_external("other", str(images), [people, benchmark])) == [benchmark.name]
    with pytest.raises(ConfigurationError, match="has no image of mini-people; call them"):
        read_external("other", str(images), [people])
