"""Edits whose subjects SAM outlines: their scores, and what tells them from others."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from ezigen.adapters import adapter_fingerprint
from ezigen.config import BenchmarkConfig, ConfigurationError, ModelConfig, SamplerConfig
from ezigen.images import decode_picture
from ezigen.metrics import Measurer, Shown, load_scorer
from ezigen.metrics.outlines import outline_subject
from ezigen.models import load_segmenter, model_fingerprint
from tasks.evaluation import read_benchmark
from tasks.evaluation.paper import ADAPTER, EDITING
from tasks.evaluation.plan import Method, plan_evaluation
from tasks.evaluation.scoring import ScoreJob, ScoreWork, encoders_digest, make_shards
from tasks.storage import Locations, OutputFolder
from tests.tiny_pipelines import build_tiny_sam

MODEL = ModelConfig(device="cpu")


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    return str(build_tiny_sam(tmp_path_factory.mktemp("sam")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def edits(folder):
    return read_benchmark(BenchmarkConfig(kind="mini-dreamedit", folder_uri=str(folder), num_subjects=2, num_prompts=2))


def score(edits, folder, output, **settings):
    """What is measured of the sources, as if they were the edits, by case."""
    jobs = [ScoreJob(case.case_id, case, case.source_uri, "0") for case in edits.cases]
    shards = make_shards(jobs)
    locations = Locations(allowed_roots=(str(folder),), base_uri=str(folder))
    work = ScoreWork(OutputFolder(str(output)), shards, MODEL, locations, **settings)
    work.open()
    (shard,) = shards
    work.make(shard)
    rows = pq.read_table(output / "scores" / f"{shard}.parquet").to_pylist()
    return {row["case_id"]: dict(row["scores"]) for row in rows}


def test_dino_sub_is_of_what_sam_outlines_and_the_rest_stays(edits, folder, sam, tmp_path):
    plain = score(edits, folder, tmp_path / "plain")
    outlined = score(edits, folder, tmp_path / "sam", segmenter=sam)
    scorer, segmenter = load_scorer(MODEL), load_segmenter(sam, device=torch.device("cpu"))
    measurer, regions = Measurer(scorer.clip, scorer.dino), 0
    for case in edits.cases:
        image, mask = (decode_picture(Path(uri).read_bytes()).rgb for uri in (case.source_uri, case.mask_uri))
        subjects = tuple(decode_picture(Path(uri).read_bytes()) for uri in case.reference_uris)
        region = outline_subject(segmenter, image, mask.convert("L"))
        regions += region is not None
        (expected,) = measurer.measure([Shown(image, case.prompt, subjects, image, mask.convert("L"), region)])
        assert outlined[case.case_id] == pytest.approx(expected, abs=1e-5)
        assert set(outlined[case.case_id]) == set(plain[case.case_id])
        others = set(plain[case.case_id]) - {"dino_sub"}
        assert all(outlined[case.case_id][name] == plain[case.case_id][name] for name in others)
    assert regions
    assert any(outlined[case_id]["dino_sub"] != plain[case_id]["dino_sub"] for case_id in plain)


def test_scores_by_another_sam_are_other_scores(sam, tmp_path):
    plain = encoders_digest(MODEL)
    assert encoders_digest(MODEL, segmenter="") == plain
    changed = build_tiny_sam(tmp_path)
    assert encoders_digest(MODEL, segmenter=str(changed)) == encoders_digest(MODEL, segmenter=sam) != plain
    config = changed / "config.json"
    config.write_text(config.read_text().replace('"layer_norm_eps": 1e-06', '"layer_norm_eps": 1e-05'))
    assert encoders_digest(MODEL, segmenter=str(changed)) not in (encoders_digest(MODEL, segmenter=sam), plain)


def test_without_edits_it_changes_nothing(edits, folder, sam, tmp_path):
    products = read_benchmark(
        BenchmarkConfig(kind="mini-dreambench", folder_uri=str(folder), num_subjects=1, num_prompts=1, num_runs=1)
    )

    def encoders(benchmark, table, segmenter):
        prints = model_fingerprint("mini"), adapter_fingerprint("auto", "mini")
        method = Method("shipped", MODEL, SamplerConfig(num_steps=2), *prints, 64, 1.0, segmenter=segmenter)
        output = OutputFolder(str(tmp_path))
        (part,) = plan_evaluation(method, output, [benchmark], [table], allowed_roots=[str(folder)]).parts
        return part.encoders

    assert encoders(products, ADAPTER, sam) == encoders(products, ADAPTER, "")
    assert encoders(edits, EDITING, sam) == encoders_digest(MODEL, segmenter=sam)
    assert encoders(edits, EDITING, "") == encoders_digest(MODEL)


def test_a_sam_that_is_missing_says_which_option_is_wrong():
    with pytest.raises(ConfigurationError, match=r"/no/such: no such folder.*sam-vit-base.*--segmenter"):
        encoders_digest(MODEL, segmenter="/no/such")
