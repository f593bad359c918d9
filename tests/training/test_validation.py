"""Measuring while training: what is measured, that nothing else changes, and how it is stored."""

import io
import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ezigen.config import ConfigurationError, MonitoringConfig, StackConfig, TrainingConfig
from ezigen.models import load_stack
from ezigen.training import Learner
from tasks.storage import Locations, OutputFolder
from tasks.training.data import TrainingSet
from tasks.training.measurements import (
    MeasuredSample,
    Measurement,
    list_sheets,
    measured_steps,
    read_measurements,
    read_sheets,
    remove_measurements_after,
    write_measurement,
)
from tasks.training.subjects import Candidate, choose
from tasks.training.validation import Validator, subject_timestep
from tests.features.pairs_files import CLASSES
from tests.training.stage import write_store

CONFIG = TrainingConfig(
    num_steps=4, batch_size=4, held_out_share=0.4, optimizer={"lr": 1e-3, "ema_decay": 0.5}, subject_dropout=0.3
)
MONITORING = MonitoringConfig(
    num_loss_pairs=6,
    num_subjects=3,
    prompts=("a photo of a {subject_class} on a beach", "a red {subject_class}"),
    num_sampling_steps=3,
    split_ratio=0.67,
)
PROMPTS = len(MONITORING.prompts)


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_folder: Path) -> str:
    return write_store(tmp_path_factory.mktemp("measured"), tiny_folder)


@pytest.fixture(scope="module")
def data(store: str) -> TrainingSet:
    return TrainingSet.open(store, CONFIG)


@pytest.fixture
def learner(tiny_folder: Path, data: TrainingSet):
    """A learner of its own, because each test trains or damages it."""
    return new_learner(tiny_folder, data)


def new_learner(model: Path, data: TrainingSet) -> Learner:
    return Learner(load_stack(str(model), device="cpu"), CONFIG, num_steps=4, t_sub=data.identity.t_sub)


@pytest.fixture
def validator(store: str, data: TrainingSet) -> Callable[..., Validator]:
    """Makes validators. Their scores are those of the embedded model's encoders, which take pictures of any size."""

    def make(learner: Learner, monitoring: MonitoringConfig = MONITORING, **options) -> Validator:
        options = {"pairs_uri": str(Path(store).parent / "pairs"), **options}
        return Validator(learner, data, monitoring, model=StackConfig(model="mini"), config=CONFIG, **options)

    return make


def train(learner: Learner, data: TrainingSet) -> float:
    batches = [data.read_batch(refs, "cpu") for refs in data.step_refs(learner.step)]
    return learner.train_step(batches, num_samples=CONFIG.batch_size).loss


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in learner.adapters.tensors().items()}


# ---- what is measured


def test_loss_scores_and_sheet_of_held_out_subjects(learner, data, validator):
    made = validator(learner)
    measurement = made.combine([made.measure()])
    batches = list(data.held_out_batches(6))
    total, count = learner.held_out_loss(batches)
    assert (measurement.num_pairs, count) == (6, 6)
    assert measurement.held_out_loss == pytest.approx(total / 6, rel=1e-6)  # other batches: other rounding

    assert {subject.pair_id for subject in made.subjects} <= set(data.held_out_pairs())
    assert len({subject.subject_class for subject in made.subjects}) == 3
    expected = [
        (subject.pair_id, prompt.replace("{subject_class}", subject.subject_class))
        for subject in made.subjects
        for prompt in MONITORING.prompts
    ]
    assert [(sample.pair_id, sample.prompt) for sample in measurement.samples] == expected
    for score in ("clip_t", "dino"):
        values = [sample.scores[score] for sample in measurement.samples]
        assert getattr(measurement, score) == pytest.approx(sum(values) / len(values))
        assert all(-1 <= value <= 1 for value in values)
    assert set(measurement.numbers()) == {"held_out_loss", "clip_t", "dino"}

    sheet = np.asarray(measurement.sheet)
    first = np.asarray(made.subjects[0].picture.rgb.resize((192, 192), Image.Resampling.LANCZOS))
    top, left = 32, 12
    shown = sheet[top + 1 : top + 191, left + 1 : left + 191]
    assert np.array_equal(shown, first[1:-1, 1:-1])  # but for its edge
    assert sheet.shape[1] == 12 + (1 + PROMPTS) * (192 + 12)


def test_parts_of_several_ranks_are_one_measurement(learner, data, validator):
    made = validator(learner)
    whole = made.combine([made.measure()])
    parts = [made.measure(rank, 4) for rank in range(4)]
    assert sorted(len(part.samples) for part in parts) == [1, 1, 2, 2]
    divided = made.combine(parts[::-1])
    assert divided.held_out_loss == pytest.approx(whole.held_out_loss, rel=1e-5)
    assert [(s.number, s.prompt) for s in divided.samples] == [(s.number, s.prompt) for s in whole.samples]
    for one, other in zip(divided.samples, whole.samples, strict=True):
        # Batch mates change an image by rounding, which 8 bits nearly hide.
        assert one.scores == pytest.approx(other.scores, abs=0.01)
    again = made.combine([made.measure()])
    assert again == whole
    assert [s.picture for s in again.samples] == [s.picture for s in whole.samples]


def test_training_goes_on_as_if_nothing_had_been_measured(tiny_folder, learner, data, validator):
    undisturbed = new_learner(tiny_folder, data)
    train(undisturbed, data)
    train(learner, data)
    state, flags = torch.get_rng_state(), [p.requires_grad for p in learner.adapters.parameters()]
    before, mode = weights(learner), learner.adapters.training
    made = validator(learner)
    first = made.combine([made.measure()])
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in learner.adapters.parameters()] == flags
    assert learner.adapters.training == mode
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(learner).items())

    assert train(learner, data) == train(undisturbed, data)
    after = weights(undisturbed)
    assert all(torch.equal(tensor, after[name]) for name, tensor in weights(learner).items())
    second = made.combine([made.measure()])
    assert (first.step, second.step) == (1, 2)
    assert second.held_out_loss != first.held_out_loss
    assert [s.picture for s in second.samples] != [s.picture for s in first.samples]


def test_samples_are_those_of_the_averaged_weights(learner, data, validator):
    train(learner, data)
    made = validator(learner)
    measured = made.measure().samples
    with learner.averaged_weights():
        averaged = {name: tensor.clone() for name, tensor in learner.adapters.tensors().items()}
    assert any(not torch.equal(tensor, averaged[name]) for name, tensor in weights(learner).items())
    with torch.no_grad():
        for name, tensor in learner.adapters.tensors().items():
            tensor.copy_(averaged[name])
    assert [s.picture for s in made.measure().samples] == [s.picture for s in measured]


def test_adapters_that_are_not_finite_give_an_empty_sheet_and_no_error(learner, data, caplog, validator):
    with torch.no_grad():
        for parameter in learner.adapters.parameters():
            parameter.fill_(math.nan)
    learner._average = None  # what is published would be NaN, too
    made = validator(learner)
    with caplog.at_level(logging.WARNING):
        measurement = made.combine([made.measure()])
    assert measurement.numbers() == {}
    assert all(sample.picture is None and not sample.scores for sample in measurement.samples)
    assert measurement.sheet is not None
    assert "not finite" in caplog.text
    assert measurement.describe() == "step 0: nothing measured"


# ---- which subjects


@pytest.mark.parametrize(
    ("monitoring", "sheets"),
    [({"num_subjects": 0}, False), ({"prompts": ()}, False), ({"num_loss_pairs": 0}, True)],
)
def test_parts_of_a_measurement_can_be_left_out(learner, data, monitoring, sheets, validator):
    made = validator(learner, MONITORING.model_copy(update=monitoring))
    measurement = made.combine([made.measure()])
    assert (measurement.held_out_loss is None) == ("num_loss_pairs" in monitoring)
    assert (measurement.sheet is not None) == bool(measurement.samples) == sheets


def test_pairs_that_are_gone_leave_the_loss(learner, data, tmp_path, caplog, validator):
    with caplog.at_level(logging.WARNING):
        made = validator(learner, pairs_uri=str(tmp_path / "gone"))
    assert str(tmp_path / "gone") in caplog.text
    assert "inputs.pairs_uri" in caplog.text
    assert made.subjects == ()
    measurement = made.combine([made.measure()])
    assert set(measurement.numbers()) == {"held_out_loss"}
    assert measurement.sheet is None


def test_the_choice_follows_from_the_seed_and_prefers_other_classes_and_pictures():
    candidates = [
        Candidate(f"coco/train/{picture}/{index}", CLASSES[(picture + index) % 3], "r0-00000", 4 * picture + index)
        for picture in range(6)
        for index in range(4)
    ]
    chosen = choose(candidates, 3, seed=1)
    assert len({one.subject_class for one in chosen}) == len({one.pair_id.rpartition("/")[0] for one in chosen}) == 3
    assert choose(candidates[::-1], 3, seed=1) == chosen
    assert choose(candidates, 3, seed=2) != chosen
    assert sorted(choose(candidates, 99, seed=1), key=lambda one: one.row) == candidates


# ---- how it is stored


def measured(step: int, *, sheet: bool = True) -> Measurement:
    sample = MeasuredSample(0, "coco/train/1/1", "cup", "a cup in the snow, “täst”", {"clip_t": 0.25, "dino": 0.5})
    picture = Image.new("RGB", (40, 30), (200, 30, 90)) if sheet else None
    return Measurement(step, 0.125 + step, 6, 0.25, None, (sample,), picture)


@pytest.mark.parametrize("on_s3", [False, True])
def test_measurements_are_stored_by_step_and_taken_back(tmp_path, request, on_s3):
    if on_s3:
        server, folder = request.getfixturevalue("s3_server"), request.getfixturevalue("s3_folder")
        output = OutputFolder(folder, Locations(storage_options=server.storage_options))
    else:
        output = OutputFolder(str(tmp_path / "run"))
    assert read_measurements(output) == []
    for step in (20, 9, 100):
        write_measurement(output, measured(step, sheet=step != 9))
    assert [m.step for m in read_measurements(output)] == measured_steps(output) == [9, 20, 100]
    assert read_measurements(output)[1] == measured(20)
    assert list_sheets(output) == [20, 100]
    picture = Image.open(io.BytesIO(read_sheets(output, [100])[100]))
    assert (picture.format, picture.size) == ("JPEG", (40, 30))
    remove_measurements_after(output, 20)
    assert measured_steps(output) == [9, 20]
    assert list_sheets(output) == [20]


def test_a_damaged_measurement_is_named(tmp_path):
    output = OutputFolder(str(tmp_path))
    output.write("validation/00000007.json", b'{"step": 7}')
    with pytest.raises(ConfigurationError, match=r"00000007\.json is no measurement"):
        read_measurements(output)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, 7),
        ({"subject_timestep": "adaptive"}, "adaptive"),
        ({"subject_encoder": "trained"}, 7),
        ({"subject_encoder": "clip"}, 1),
    ],
)
def test_samples_are_made_at_the_timestep_of_training(changes, wanted):
    """Of the store; an image encoder has none, for which the sampler's 1 stands."""
    assert subject_timestep(TrainingConfig(**changes), 7) == wanted


def test_settings_of_samples_are_checked_when_they_are_given():
    with pytest.raises(ValueError, match="leaves no step for appearance transfer"):
        MonitoringConfig(num_sampling_steps=2, split_ratio=0.1)
    assert MonitoringConfig(mode="iterative").sampler(t_sub=3).loops.num_loops == 3
