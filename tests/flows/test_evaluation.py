"""evaluate_adapter: the shipped adapter on products that it never saw, few and small, with a real server."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect.client.schemas.objects import State

from ezigen.config import ConfigurationError, EvaluationConfig, EvaluationInputs, StackConfig
from ezigen.mini import weights_folder
from flows.evaluate_adapter import evaluate_adapter
from flows.evaluation_job import EvaluationSummary
from tasks.adapters import Registry
from tasks.storage import OutputFolder
from tests.flows.test_training_flow import latest_artifacts, pictures_in

SMALL: dict[str, Any] = {"num_products": 1, "num_steps": 3}


def evaluate(root: Path, model: str = "mini", **settings) -> State[Any]:
    inputs = EvaluationInputs(
        adapter="shipped@latest", adapters_uri=str(root / "adapters"), output_uri=str(root / "evaluation")
    )
    wanted = EvaluationConfig(**{**SMALL, **settings})
    return evaluate_adapter(inputs, StackConfig(model=model, device="cpu"), wanted, return_state=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    registry = Registry(str(tmp_path / "adapters"))
    folder = OutputFolder(str(weights_folder() / "adapter"))
    registry.publish("shipped", folder, alias="latest", metrics={"dino": 0.25})
    return tmp_path


def test_a_version_is_measured_once_for_each_setting(root: Path, reporting_here):
    state = evaluate(root)
    assert state.is_completed(), state.message
    summary = state.result()
    assert isinstance(summary, EvaluationSummary)
    assert summary.made
    assert state.message.startswith("shipped@v1, 4 images of products that nothing was trained on: product right ")
    assert {path.name for path in (root / "evaluation").glob("shipped*")} == {"shipped-v1.json", "shipped-v1.jpg"}
    stored = json.loads((root / "evaluation" / "shipped-v1.json").read_text())
    assert stored["num_images"] == len(stored["images"]) == 4
    assert len({image["scene"] for image in stored["images"]}) == 4
    assert set(stored["figures"]) >= {"scene", "product", "variant", "clip_t", "dino"}
    for name, (mean, low, high) in stored["figures"].items():
        assert low <= mean <= high
        assert mean == pytest.approx(sum(image["scores"][name] for image in stored["images"]) / 4)

    shown = latest_artifacts()
    assert "product right" in shown["evaluation-figures"].data
    assert state.message in shown["evaluation-report"].data
    (sheet,) = pictures_in(shown["evaluation-report"].data)
    with Image.open(root / "evaluation" / "shipped-v1.jpg") as kept:
        assert sheet.size == kept.size

    again = evaluate(root)
    assert again.message == f"nothing to do: {state.message}"
    assert not again.result().made

    more = evaluate(root, num_seeds=2, face_encoder="mini")
    assert more.message.startswith("shipped@v1, 8 images of products")
    assert more.result().made
    faces = json.loads((root / "evaluation" / "shipped-v1.json").read_text())["figures"]
    assert (faces["face"], faces["face_found"]) == ([0, 0, 0], [0, 0, 0])  # these products have none
    (root / "evaluation" / "shipped-v1.json").write_text("{")
    assert evaluate(root, num_seeds=2, face_encoder="mini").result().made


def test_without_held_out_products_the_last_measurement_of_training_is_told(root: Path, reporting_here, tiny_model):
    for state in (evaluate(root, num_products=0), evaluate(root, str(tiny_model))):
        assert state.is_completed(), state.message
        assert state.message == "shipped@v1, as training measured it last: DINO 0.250"
    assert not list((root / "evaluation").glob("shipped*"))


def test_an_adapter_that_was_not_published_is_named(tmp_path: Path, reporting_here):
    state = evaluate(tmp_path)
    assert state.is_failed()
    error = state.result(raise_on_failure=False)
    assert isinstance(error, ConfigurationError)
    assert "shipped" in str(error)
