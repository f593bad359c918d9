"""A catalog run whose scenes another model draws."""

import numpy as np
import pytest
import ray

from ezigen.config import CatalogInputs, ClusterConfig, ErrorCode, SamplerConfig, SketchConfig
from ezigen.images import decode_picture
from tasks.actors import CatalogWorker
from tests.run.catalogs import assert_complete, resolved_rows, write_catalog
from tests.run.driver import run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_address")]


def test_scenes_are_drawn_by_another_model_and_end_as_images(tmp_path, tiny_model):
    catalog = write_catalog(tmp_path, 4, prompts={3: "a table"})
    sketch = SketchConfig(model=tiny_model.model, draw_size_px=32, num_steps=2, size_px=40)
    outcome = run(
        CatalogInputs(catalog_uri=str(catalog), output_uri=str(tmp_path / "out")),
        CatalogWorker,
        cluster=ClusterConfig(address=ray.get_runtime_context().gcs_address, num_workers=1, num_slots=2, num_ahead=2),
        model=tiny_model.model_copy(update={"sketch": sketch}),
        sampler=SamplerConfig(num_steps=4, loops={"stop": "fixed", "num_loops": 1}),
    )
    assert (outcome.done, outcome.failed) == (3, 1)
    assert_complete(tmp_path / "out", 4, {"item-3"})
    rows = resolved_rows(tmp_path / "out")
    assert rows["item-3"].error_code is ErrorCode.ROW_INVALID
    assert "'cup' does not stand in the prompt" in rows["item-3"].error_message
    for row in (rows[f"item-{index}"] for index in range(3)):
        assert (row.width_px, row.height_px) == (40, 40)
        # Subject, the drawn scene, the first transfer and a loop.
        assert row.preview_panels == 4
        strip = np.asarray(decode_picture(row.preview).rgb, np.int16)
        assert np.abs(strip[:, 96:192] - strip[:, -96:]).mean() > 5
