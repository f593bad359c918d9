import subprocess
import sys

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from ezigen.config import (
    CatalogInputs,
    ConfigurationError,
    FeatureConfig,
    FeatureInputs,
    PairConfig,
    PairInputs,
    RayConfig,
    SamplerConfig,
    StackConfig,
    balanced,
    draft,
    embedded,
    paper,
    released,
)
from flows.build_pairs import build_pairs
from flows.feature_options import FeatureOptions
from flows.pair_options import PairOptions
from flows.parameters import build_parameters, describe_invalid
from flows.personalize_catalog import personalize_catalog
from flows.precompute_features import precompute_features
from flows.run_options import RunOptions
from flows.run_pipeline import run_pipeline
from flows.train_adapter import train_adapter


def parameters(**groups):
    base = {"inputs": {"catalog_uri": "c.csv", "output_uri": "out"}, "model": {}, "sampler": {}, "cluster": {}}
    return build_parameters(**(base | groups))


@pytest.mark.parametrize(
    ("preset", "speed", "model", "expected"),
    [
        ("auto", None, "mini", balanced(embedded())),
        ("auto", "exact", "mini", embedded()),
        ("auto", None, "sd21", balanced(paper())),
        ("auto", "draft", "sd21", draft(paper())),
        ("released", None, "mini", released()),
        ("paper", None, "mini", paper()),
        ("paper", "balanced", "mini", balanced(paper())),
    ],
)
def test_a_preset_that_is_named_is_taken_as_it_is(preset, speed, model, expected):
    """And otherwise it fits the model, and is balanced."""
    assert parameters(preset=preset, speed=speed, model={"model": model}).sampler == expected


def test_a_sketch_model_and_what_is_set_about_it():
    options = RunOptions("c.csv", "out", sketch_model="flux", assignments=["model.sketch.region=all"])
    sketch = options.parameters().model.sketch
    assert (sketch.model, sketch.region, sketch.draws) == ("flux", "all", True)
    assert not RunOptions("c.csv", "out").parameters().model.sketch.draws


def test_flags_change_a_preset_and_assignments_win():
    made = parameters(
        sampler={"num_steps": 7, "mode": None},
        cluster={"num_workers": 3},
        assignments=["sampler.loops.max_loops=4", "cluster.num_workers=2", 'inputs.allowed_roots=["/a", "/b"]'],
    )
    expected = balanced(embedded())
    assert made.sampler == expected.model_copy(
        update={"num_steps": 7, "loops": expected.loops.model_copy(update={"max_loops": 4})}
    )
    assert made.cluster.num_workers == 2
    assert made.inputs.allowed_roots == ["/a", "/b"]


def test_an_assigned_model_chooses_the_preset():
    assert parameters(assignments=["model.model=sd21"]).sampler == balanced(paper())


def test_a_value_that_is_no_json_is_text():
    made = parameters(assignments=["sampler.negative_prompt=dark, blur", "sampler.subject_prompt={subject_class}"])
    assert made.sampler.negative_prompt == "dark, blur"
    assert made.sampler.subject_prompt == "{subject_class}"


@pytest.mark.parametrize(
    ("assignment", "names"),
    [
        ("sampler.loop.max_loops=4", ["sampler", "'loop'", "known fields", "loops"]),
        ("sampler.num_steps.deep=4", ["sampler.num_steps", "no fields of its own"]),
        ("engine.speed=4", ["inputs, model, sampler, cluster"]),
        ("sampler=4", ["GROUP.FIELD=VALUE"]),
        ("sampler.num_steps", ["GROUP.FIELD=VALUE"]),
    ],
)
def test_a_wrong_assignment_names_what_is_known(assignment, names):
    with pytest.raises(ConfigurationError) as caught:
        parameters(assignments=[assignment])
    assert all(name in str(caught.value) for name in [assignment, *names])


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigurationError, match="auto, paper, released, embedded"):
        parameters(preset="fast")


def test_an_unknown_speed_names_the_known_ones():
    with pytest.raises(ConfigurationError, match="exact, balanced, draft"):
        parameters(speed="fast")


def test_invalid_values_are_told_one_by_one_with_field_bound_and_value():
    with pytest.raises(ValidationError) as caught:
        parameters(sampler={"num_steps": 0, "mode": "fast"})
    lines = describe_invalid(caught.value)
    assert len(lines) == 2
    assert any("sampler.num_steps" in line and "greater than or equal to 1" in line and "0" in line for line in lines)
    assert any("sampler.mode" in line and "'iterative'" in line and "'fast'" in line for line in lines)


def test_contradictions_name_their_group():
    with pytest.raises(ValidationError) as caught:
        parameters(assignments=["sampler.loops.min_loops=9"])
    assert describe_invalid(caught.value) == ["sampler.loops: loops.min_loops (9) must not exceed loops.max_loops (6)"]


def test_options_that_are_not_given_leave_the_defaults():
    made = RunOptions(catalog="c.csv", output="out").parameters()
    assert made.inputs == CatalogInputs(catalog_uri="c.csv", output_uri="out")
    assert made.sampler == balanced(embedded())


def test_every_option_reaches_its_field():
    made = RunOptions(
        catalog="c.csv",
        output="out",
        model="sd21",
        adapter="ckpt",
        image_encoder="dino",
        device="cpu",
        dtype="fp32",
        mode="decoupled",
        steps=9,
        guidance=2.0,
        solver="ddpm",
        address="head:6379",
        workers=3,
        slots=2,
        accelerator="cpu",
        allow_root=["/pictures"],
        retry_failed=True,
        limit=5,
        max_failed_share=0.5,
        wait=True,
        storage_block="shop",
    ).parameters()
    assert made.model.model_dump().values() == {"sd21", "ckpt", "dino", "cpu", "fp32"} or made.model.adapter == "ckpt"
    assert (made.model.model, made.model.image_encoder, made.model.dtype) == ("sd21", "dino", "fp32")
    assert (made.sampler.mode, made.sampler.num_steps, made.sampler.guidance_scale, made.sampler.solver) == (
        "decoupled",
        9,
        2.0,
        "ddpm",
    )
    assert (made.cluster.address, made.cluster.num_workers, made.cluster.num_slots, made.cluster.accelerator) == (
        "head:6379",
        3,
        2,
        "cpu",
    )
    assert made.inputs.model_dump(
        include={"allowed_roots", "retry_failed", "limit", "max_failed_share", "if_busy"}
    ) == {
        "allowed_roots": ["/pictures"],
        "retry_failed": True,
        "limit": 5,
        "max_failed_share": 0.5,
        "if_busy": "wait",
    }
    assert made.inputs.storage_block == "shop"


def test_every_option_of_pairs_reaches_its_field():
    made = PairOptions(
        output="out",
        coco="coco",
        youtube_vis="videos",
        coco_split="both",
        num_coco=7,
        num_youtube_vis=0,
        max_refused_share=0.25,
        wait=True,
        storage_block="shop",
        size=64,
        seed=3,
        targets="reference",
        picture_format="png",
        pairs_per_shard=9,
        address="head:6379",
        workers=2,
        accelerator="cpu",
        assignments=["pairs.coco.max_objects=2", "cluster.grace_period_s=5", "inputs.max_picture_side_px=640"],
    ).parameters()
    assert made.inputs == PairInputs(
        output_uri="out",
        coco_uri="coco",
        coco_split="both",
        youtube_vis_uri="videos",
        num_coco_pairs=7,
        num_youtube_vis_pairs=0,
        max_refused_share=0.25,
        if_busy="wait",
        max_picture_side_px=640,
        storage_block="shop",
    )
    assert made.pairs == PairConfig(
        size_px=64, seed=3, targets="reference", picture_format="png", pairs_per_shard=9, coco={"max_objects": 2}
    )
    assert made.cluster == RayConfig(address="head:6379", num_workers=2, accelerator="cpu", grace_period_s=5)
    assert PairOptions(output="out", coco="coco").parameters().inputs == PairInputs(output_uri="out", coco_uri="coco")


def test_every_option_of_features_reaches_its_field():
    made = FeatureOptions(
        pairs="pairs",
        store="store",
        model="sd21",
        device="cpu",
        network_dtype="fp32",
        policy="latents",
        dtype="fp8",
        tokens="foreground",
        t_sub=100,
        batch_size=2,
        max_gib=1.5,
        verify=True,
        wait=True,
        storage_block="shop",
        address="head:6379",
        workers=2,
        accelerator="gpu",
        assignments=["features.text_embeddings=false"],
    ).parameters()
    assert made.inputs == FeatureInputs(
        pairs_uri="pairs", output_uri="store", max_gib=1.5, verify=True, if_busy="wait", storage_block="shop"
    )
    assert made.model == StackConfig(model="sd21", device="cpu", dtype="fp32")
    assert made.features == FeatureConfig(
        policy="latents", dtype="fp8", tokens="foreground", t_sub=100, text_embeddings=False, batch_size=2
    )
    assert made.cluster == RayConfig(address="head:6379", num_workers=2, accelerator="gpu")
    assert FeatureOptions(pairs="p", store="s").parameters().features == FeatureConfig()


def test_mistakes_name_the_groups_of_their_own_command():
    with pytest.raises(ConfigurationError, match=r"groups inputs, pairs, cluster, as in pairs.coco.min_area_px=500"):
        PairOptions(output="out", coco="coco", assignments=["sampler.num_steps=3"]).parameters()
    with pytest.raises(ConfigurationError, match=r"groups inputs, model, features, cluster, as in features"):
        FeatureOptions(pairs="p", store="s", assignments=["pairs.seed=3"]).parameters()
    with pytest.raises(ValidationError) as caught:
        FeatureOptions(pairs="p", store="s", dtype="fp4", t_sub=1000).parameters()
    assert [line.partition(":")[0] for line in describe_invalid(caught.value)] == ["features.dtype", "features.t_sub"]


@pytest.mark.parametrize(
    ("flow", "groups"),
    [
        (personalize_catalog, ["inputs", "model", "sampler", "cluster"]),
        (build_pairs, ["inputs", "pairs", "cluster"]),
        (precompute_features, ["inputs", "model", "features", "cluster"]),
        (train_adapter, ["inputs", "model", "training", "monitoring", "cluster"]),
        (run_pipeline, ["inputs", "model", "pairs", "features", "training", "monitoring", "evaluation", "cluster"]),
    ],
)
def test_forms_have_an_order_and_a_description_everywhere(flow, groups):
    schema = parameter_schema(flow).model_dump()
    assert sorted(schema["properties"], key=lambda name: schema["properties"][name]["position"]) == groups
    assert schema["required"] == ["inputs"]
    for definition in schema["definitions"].values():
        fields = definition["properties"]
        assert [field["position"] for field in fields.values()] == list(range(len(fields)))
        assert all(field.get("description") for field in fields.values())
        assert definition["additionalProperties"] is False


def test_the_form_of_a_catalog_has_bounds_and_choices():
    schema = parameter_schema(personalize_catalog).model_dump()
    sampler = schema["definitions"]["SamplerConfig"]["properties"]
    assert (sampler["num_steps"]["minimum"], sampler["num_steps"]["maximum"]) == (1, 1000)
    assert sampler["mode"]["enum"] == ["text_only", "full_injection", "decoupled", "iterative"]
    assert schema["properties"]["sampler"]["default"] == balanced(embedded()).model_dump()
    assert next(iter(SamplerConfig.model_fields)) == "mode"


def test_the_command_line_and_plans_load_no_heavy_package():
    code = (
        "import sys, flows.command_line, flows.planning, tasks.catalog.plan; "
        "print([name for name in ('torch', 'diffusers', 'prefect', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
