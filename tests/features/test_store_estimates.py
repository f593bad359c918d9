"""What a store will weigh: the numbers of the plan against hand-made ones, and against stores."""

import os

import pytest
import torch

from ezigen.config import ConfigurationError, FeatureConfig, RayConfig, StackConfig
from ezigen.models.fingerprint import model_fingerprint
from ezigen.models.stack import load_stack
from ezigen.subject import SubjectEncoder
from tasks.features import EncodingCost, FeatureIdentity, ModelShape, estimate
from tasks.features.hardware import Hardware, find_hardware, network_dtype
from tests.features.stores import SD21, SD21_BLOCKS, SD21_COST, identity_of, write_features
from tests.tiny import build_tiny_stack


class TestNumbersOfTheRealModel:
    @pytest.mark.parametrize(
        ("dtype", "tokens", "megabytes", "terabytes", "from_picture", "from_latent"),
        [
            ("fp16", "all", 23.1, 4.6, 4.7, 11.5),
            ("fp8", "all", 11.6, 2.3, None, None),
            ("fp16", "foreground", 6.9, 1.4, None, None),
            ("fp8", "foreground", 3.5, 0.7, 0.7, 1.7),
        ],
    )
    def test_bytes_and_break_even(self, dtype, tokens, megabytes, terabytes, from_picture, from_latent):
        identity = identity_of(SD21, dtype=dtype, tokens=tokens)
        planned = estimate(200_000, 0, 0, identity, cost=SD21_COST)
        assert planned.bytes_per_subject / 1e6 == pytest.approx(megabytes, abs=0.08)
        assert planned.total_bytes / 1e12 == pytest.approx(terabytes, abs=0.05)
        if from_picture:
            assert planned.break_even_from_picture / 1e9 == pytest.approx(from_picture, abs=0.05)
            assert planned.break_even_from_latent / 1e9 == pytest.approx(from_latent, abs=0.05)

    def test_hours_of_an_h200(self):
        """4.9 ms a subject and 2.8 ms a target picture at 400 T/s."""
        hardware = Hardware("gpu", 2)
        planned = estimate(200_000, 200_000, 0, identity_of(SD21), cost=SD21_COST, hardware=hardware)
        assert planned.hours == pytest.approx(200_000 * (4.9e-3 + 2.8e-3) / 3600 / 2, rel=0.01)

    def test_targets_texts_and_latents(self):
        planned = estimate(0, 1000, 1000, identity_of(SD21))
        assert planned.num_bytes["latents"] / 1000 == pytest.approx(65_536, rel=0.03)
        assert planned.num_bytes["texts"] / 1000 == pytest.approx(158_000, rel=0.01)
        latents = estimate(1000, 0, 0, identity_of(SD21, policy="latents"), cost=SD21_COST)
        assert latents.total_bytes / 1000 == pytest.approx(32_768, rel=0.05)
        assert latents.break_even_from_picture is None
        assert latents.hours == pytest.approx(1000 * SD21_COST.vae_flop / 400e12 / 3600)

    def test_a_plan_is_told_in_words(self):
        lines = dict(estimate(200_000, 200_000, 1000, identity_of(SD21), cost=SD21_COST).describe())
        assert lines["subjects"] == "200,000 rows, 4.6 TB"
        assert lines["per subject"] == "23.1 MB"
        assert lines["computing"] == "25.7 min on 1 gpu worker at 400 TFLOP/s"
        assert "above 4.7 GB/s per gpu worker against pictures, 11.5 GB/s against stored latents" in lines["break-even"]
        assert "computing" not in dict(estimate(1, 1, 1, identity_of(SD21)).describe())


@pytest.mark.parametrize("config", [{}, {"dtype": "fp8"}, {"policy": "latents"}, {"text_embeddings": False}])
def test_a_written_store_weighs_what_was_planned(tmp_path, config):
    """At toy shapes, where everything but the numbers counts most; files have a few KB of their own."""
    written = write_features(tmp_path, num_shards=1, per_shard=60, **config)
    planned = estimate(60, 60, 60, written.identity).total_bytes
    stored = sum(file.num_bytes for shard in written.shards.values() for file in shard.files)
    stored += (tmp_path / "index.parquet").stat().st_size
    assert stored == pytest.approx(planned, rel=0.15)


class TestHardware:
    """Hours are those of what the run would use."""

    @pytest.mark.parametrize(
        ("model", "cluster", "told"),
        [
            ({"device": "cpu"}, {"num_workers": 2}, "2 cpu workers at 0.1 TFLOP/s each"),
            ({}, {"accelerator": "cpu", "num_workers": 2}, "2 cpu workers at 0.1 TFLOP/s each"),
            ({}, {"accelerator": "cpu", "num_workers": 1, "cpus_per_worker": 8}, "1 cpu worker at 0.8 TFLOP/s"),
            ({}, {"accelerator": "gpu", "num_workers": 3}, "3 gpu workers at 400 TFLOP/s each"),
            ({"device": "cuda"}, {"num_workers": 4, "gpus_per_worker": 0.5}, "4 gpu workers at 200 TFLOP/s each"),
            ({}, {"address": "head:6379", "accelerator": "gpu", "num_workers": 1}, "1 gpu worker at 400 TFLOP/s"),
        ],
    )
    def test_a_named_one_needs_no_assumption(self, model, cluster, told):
        assert find_hardware(StackConfig(**model), RayConfig(**cluster)).describe() == told

    def test_auto_is_what_this_machine_has(self):
        found = find_hardware(StackConfig(), RayConfig())
        gpus, cores = torch.cuda.device_count(), len(os.sched_getaffinity(0))
        assert (found.device, found.num_workers) == (("gpu", gpus) if gpus else ("cpu", cores))
        assert found.assumption == ""
        wide = RayConfig(accelerator="cpu", cpus_per_worker=2 * cores)
        assert find_hardware(StackConfig(), wide).num_workers == 1

    def test_what_only_the_run_will_know_is_told(self):
        told = find_hardware(StackConfig(), RayConfig(address="head:6379")).describe()
        assert told.startswith("1 gpu worker at 400 TFLOP/s, assuming that head:6379 has GPUs")
        assert "cluster.num_workers is 0" in told
        one = find_hardware(StackConfig(), RayConfig(address="head:6379", accelerator="cpu"))
        assert (one.device, one.num_workers) == ("cpu", 1)
        assert "one worker" in one.assumption
        assert "GPUs" not in one.assumption

    def test_the_networks_precision_follows_from_it(self):
        assert network_dtype(StackConfig(device="cpu"), RayConfig()) == "fp32"
        assert network_dtype(StackConfig(), RayConfig(address="head:6379")) == "bf16"
        assert network_dtype(StackConfig(device="cpu", dtype="fp16"), RayConfig()) == "fp16"


class TestModelShape:
    def test_it_is_that_of_the_loaded_model(self, tmp_path):
        folder = str(build_tiny_stack(tmp_path / "tiny"))
        shape, stack = ModelShape.of(folder), load_stack(folder)
        pictures = torch.zeros(2, 3, stack.image_size_px, stack.image_size_px)
        features = SubjectEncoder(stack).encode(pictures, ["cup", "dog"])
        assert {b.name: (2, b.num_tokens, b.num_channels) for b in shape.blocks} == {
            name: tuple(tokens.shape) for name, tokens in features.tokens.items()
        }
        assert (shape.size_px, shape.latent_shape) == (stack.image_size_px, stack.latent_shape)
        identity = FeatureIdentity.of(model_fingerprint(folder), shape, FeatureConfig(t_sub=7), network_dtype="bf16")
        assert (identity.t_sub, identity.model_fingerprint) == (7, stack.fingerprint)
        assert identity.network_dtype == "bf16"

    def test_it_counts_what_performance_is_reckoned_with(self, tmp_path):
        """SD2.1-base: 0.804, 1.12 and 0.045 T."""
        import json

        folder = build_tiny_stack(tmp_path / "tiny")
        for part, changes in _SD21_CONFIGS.items():
            path = folder / part / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        config = folder / "tokenizer" / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 77}))
        shape = ModelShape.of(str(folder))
        assert sorted((b.num_tokens, b.num_channels) for b in shape.blocks) == sorted(
            (b.num_tokens, b.num_channels) for b in SD21_BLOCKS
        )
        assert {b.name for b in shape.blocks} == {b.name for b in SD21_BLOCKS}
        assert (shape.size_px, shape.latent_shape, shape.text_shape) == (512, (4, 64, 64), (77, 1024))
        assert shape.cost.unet_flop / 1e12 == pytest.approx(0.804, abs=0.001)
        assert shape.cost.vae_flop / 1e12 == pytest.approx(1.12, abs=0.01)
        assert shape.cost.text_flop / 1e12 == pytest.approx(0.045, abs=0.001)
        assert shape.cost.subject_flop / 1e12 == pytest.approx(1.97, abs=0.01)

    def test_a_model_that_is_not_there_or_makes_no_sense_is_named(self, tmp_path):
        with pytest.raises(ConfigurationError, match="no such folder"):
            ModelShape.of(str(tmp_path / "absent"))
        folder = build_tiny_stack(tmp_path / "tiny")
        (folder / "unet" / "config.json").write_text('{"block_out_channels": 3}')
        with pytest.raises(ConfigurationError, match="describes no usable model"):
            ModelShape.of(str(folder))

    def test_costs_add_up(self):
        assert EncodingCost(1.0, 2.0, 4.0).subject_flop == 7.0


_SD21_CONFIGS = {
    "unet": {
        "sample_size": 64,
        "layers_per_block": 2,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "norm_num_groups": 32,
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
    },
    "text_encoder": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "max_position_embeddings": 77,
    },
}
