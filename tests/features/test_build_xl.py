"""A store of Stable Diffusion XL's features: what is in it, and that adapters learn from it."""

import json

import pytest
import torch

from ezigen.config import SourceConfig, StackConfig, TrainingConfig, TrainingInputs
from ezigen.models import encode_prompts, load_stack, tokenize_prompts
from ezigen.subject import SubjectEncoder
from ezigen.training import Learner
from tasks.features import FeatureIdentity, ModelShape, text_id
from tasks.training.data import TrainingSet
from tasks.training.plan import plan_training
from tests.features.pairs_files import make_row, write_pairs
from tests.features.stage import Stage
from tests.features.stores import identity_of
from tests.features.test_build import pixels_of, subject_id_of
from tests.tiny import XL_POOLED, XL_WIDTH_2, build_tiny_xl_stack

ROWS = [make_row(index) for index in range(3)]


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory):
    return build_tiny_xl_stack(tmp_path_factory.mktemp("xl"))


def test_the_shape_is_known_from_the_configuration(xl_folder):
    shape, stack = ModelShape.of(str(xl_folder)), load_stack(str(xl_folder), device="cpu")
    assert (shape.size_px, shape.latent_shape) == (stack.image_size_px, stack.latent_shape)
    assert (shape.text_shape, shape.pooled_channels) == ((16, 32 + XL_WIDTH_2), XL_POOLED)
    found = SubjectEncoder(stack).encode(torch.zeros(1, 3, 32, 32), ["cup"]).tokens
    assert {b.name: (b.num_tokens, b.num_channels) for b in shape.blocks} == {n: t.shape[1:] for n, t in found.items()}


@pytest.mark.parametrize("text_embeddings", [True, False])
@pytest.mark.parametrize("policy", ["features", "latents"])
def test_a_store_holds_what_the_networks_say_and_adapters_learn_from_it(tmp_path, xl_folder, policy, text_embeddings):
    write_pairs(str(tmp_path / "pairs"), ROWS)
    config = {"policy": policy, "text_embeddings": text_embeddings}
    store = Stage(tmp_path / "pairs", tmp_path / "store", xl_folder, **config).make_here()
    stack = load_stack(str(xl_folder), device="cpu")
    assert FeatureIdentity.from_json(store.identity.to_json()) == store.identity
    assert store.identity.pooled_channels == XL_POOLED
    for row in ROWS:
        found, wanted = store.read_text(text_id(row["caption"])), encode_prompts(stack, [row["caption"]])
        assert torch.equal(found.token_ids, tokenize_prompts(stack, [row["caption"]]).input_ids[0])
        if text_embeddings:
            torch.testing.assert_close(found.embeddings.float(), wanted.tokens[0], atol=2e-3, rtol=2e-3)
            torch.testing.assert_close(found.pooled.float(), wanted.pooled[0], atol=2e-3, rtol=2e-3)
        else:
            assert (found.embeddings, found.pooled) == (None, None)
        if policy == "features":
            tokens = SubjectEncoder(stack).encode(pixels_of(row)[None], [row["subject_class"]]).tokens
            for name, stored in store.read_subject(subject_id_of(row)).tokens.items():
                torch.testing.assert_close(stored.float(), tokens[name], atol=2e-3, rtol=2e-3)

    options = {"batch_size": 2, "held_out_share": 0.0, "youtube_vis": SourceConfig(weight=0.0), "text_dropout": "auto"}
    training = TrainingConfig(**options)
    learner = Learner(stack, training, num_steps=2, t_sub=1)
    batches = TrainingSet.open(str(tmp_path / "store"), training, model_fingerprint=stack.fingerprint)
    losses = [
        learner.train_step([batches.read_batch(batches.refs(range(2 * step, 2 * step + 2)))], num_samples=2).loss
        for step in range(2)
    ]
    assert min(losses) > 0
    plans = [
        plan_training(
            TrainingInputs(features_uri=str(tmp_path / "store"), output_uri=str(tmp_path / "runs")),
            training.model_copy(update={"text_dropout": share}),
            StackConfig(model=str(xl_folder)),
        )
        for share in ("auto", 0.3, 0.05)
    ]
    assert plans[0].digest == plans[1].digest != plans[2].digest
    assert ("left out", "20 % of subjects, 30 % of captions") in plans[0].describe()
    assert plans[0].config.text_dropout == 0.3
    learner.save(tmp_path / "checkpoint")
    state = json.loads((tmp_path / "checkpoint" / "state.json").read_text())
    assert state["identity"]["training"]["text_dropout"] == 0.3


def test_identities_of_other_models_are_as_they_were():
    """No word of pooled embeddings where there are none: stores that exist stay valid."""
    identity = identity_of()
    assert identity.pooled_channels == 0
    assert "pooled_channels" not in identity.to_json()
    assert FeatureIdentity.from_json(identity.to_json()).digest() == identity.digest()
