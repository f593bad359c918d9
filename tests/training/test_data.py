"""The samples of a feature store: what a batch holds, what is held out, who shares a target, which are refused."""

import pickle
from collections import Counter

import pytest
import torch

from ezigen.config import ConfigurationError, SourceConfig, TrainingConfig
from ezigen.training.batch import SOURCES
from tasks.features import FeatureStore, text_id
from tasks.storage import RunRecord, new_run_id
from tasks.storage.run_record import now_text
from tasks.training.data import HELD_OUT_POSITION, TrainingSet
from tests.features.stores import (
    BLOCKS,
    SHAPE,
    subject_class,
    subject_key,
    target_of,
    text,
)
from tests.training.data_stores import StoredPair, coco_pairs, token_ids_of, video_pairs, write_store_of

torch.set_num_threads(1)


def open_set(root, pairs=None, *, store=None, **config) -> TrainingSet:
    """The training set of a store, written here if pairs are given."""
    if pairs is not None:
        write_store_of(root, pairs, **(store or {}))
    return TrainingSet.open(str(root), TrainingConfig(**{"batch_size": 6, "held_out_share": 0.0, **config}))


def pairs_of(ref, pairs):
    """The pairs of a sample, as they were stored."""
    return [pairs[row] for row in ref.pairs]


def tokens_of(batch, sample, block):
    """(S, N, C) tokens and (S, N) mask of a sample."""
    num_slots = batch.slots.shape[1]
    tokens = batch.features.tokens[block][sample].unflatten(0, (num_slots, -1))
    mask = batch.features.full_mask()[block][sample].unflatten(0, (num_slots, -1))
    return tokens, mask


# ---- what a batch holds


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp8"])
@pytest.mark.parametrize("tokens", ["all", "foreground"])
def test_a_batch_holds_what_is_stored_of_its_samples(tmp_path, dtype, tokens):
    """Three subjects at most: samples of one, two and three, the slots that are missing masked."""
    pairs = [*coco_pairs(4, per_picture=3)[:-3], *coco_pairs(5, per_picture=3)[-3:-1], *video_pairs(3)]
    training_set = open_set(tmp_path, pairs, store={"dtype": dtype, "tokens": tokens}, max_subjects=3)
    store = FeatureStore.open(str(tmp_path))
    refs = training_set.refs(range(8))
    batch = training_set.read_batch(refs)
    assert {len(ref.pairs) for ref in refs} == {1, 2, 3}
    for sample, ref in enumerate(refs):
        own = pairs_of(ref, pairs)
        assert batch.slots[sample].tolist() == [slot < len(own) for slot in range(3)]
        assert batch.subject_classes[sample] == tuple(subject_class(pair.subject) for pair in own)
        for block in BLOCKS:
            tokens, mask = tokens_of(batch, sample, block.name)
            for slot, pair in enumerate(own):
                alone = store.read_subject(subject_key(pair.subject)).tokens[block.name][0]
                assert torch.equal(tokens[slot][mask[slot]], alone)
            assert not mask[len(own) :].any()
            assert not tokens[len(own) :].any()


def test_targets_and_texts_are_the_samples_own(tmp_path):
    pairs = [*coco_pairs(6), *video_pairs(4)]
    training_set = open_set(
        tmp_path, pairs, coco=SourceConfig(min_timestep=100), youtube_vis=SourceConfig(max_timestep=500)
    )
    refs = training_set.refs(range(10))
    batch = training_set.read_batch(refs)
    assert batch.positions.tolist() == list(range(10))
    for sample, ref in enumerate(refs):
        (pair,) = pairs_of(ref, pairs)
        mean, variance = target_of(pair.target)
        assert torch.equal(batch.mean[sample], mean.half().float())
        assert torch.equal(batch.variance[sample], variance.bfloat16().float())
        assert torch.equal(batch.token_ids[sample], token_ids_of(pair.text))
        assert torch.equal(batch.text.tokens[sample], training_set.store.read_text(text_id(text(pair.text))).embeddings)
        assert SOURCES[batch.sources[sample]] == pair.source
        assert batch.timesteps[sample].tolist() == ([100, 999] if pair.source == "coco" else [0, 500])
    assert batch.mean.dtype == batch.variance.dtype == torch.float32
    assert batch.subject_latents is None


def test_latents_take_the_place_of_tokens(tmp_path):
    pairs = [*coco_pairs(3, per_picture=2), *video_pairs(3)]
    store = {"policy": "latents", "text_embeddings": False}
    training_set = open_set(tmp_path, pairs, store=store, max_subjects=2)
    refs = training_set.refs(range(6))
    batch = training_set.read_batch(refs)
    assert batch.features is None
    assert batch.text is None
    assert batch.subject_latents.shape == (6, 2, *SHAPE.latent_shape)
    for sample, ref in enumerate(refs):
        own = pairs_of(ref, pairs)
        for slot, pair in enumerate(own):
            assert torch.equal(batch.subject_latents[sample, slot], target_of(pair.subject)[0].half().float())
        assert not batch.subject_latents[sample, len(own) :].any()


def test_full_slots_are_not_copied(tmp_path):
    """One subject per sample: tokens stay views of the block that was read, which is what makes reading fast."""
    batch = (training_set := open_set(tmp_path, coco_pairs(4))).read_batch(training_set.refs(range(4)))
    blocks = {tokens.untyped_storage().data_ptr() for tokens in batch.features.tokens.values()}
    assert len(blocks) == 1
    assert batch.features.mask is None


# ---- order


def test_sources_alternate_and_every_sample_comes_once_per_epoch(tmp_path):
    training_set = open_set(tmp_path, [*coco_pairs(9), *video_pairs(3)])
    refs = training_set.refs(range(24))
    assert [ref.source for ref in refs] == [0, 1] * 12
    assert Counter(Counter(ref.pairs for ref in refs[::2]).values()) == {1: 6, 2: 3}  # 12 of 9: one epoch and a third
    assert set(Counter(ref.pairs for ref in refs[1::2]).values()) == {4}


def test_the_seed_decides_the_order(tmp_path):
    pairs = coco_pairs(12)
    orders = [
        tuple(ref.pairs for ref in open_set(tmp_path, None if seed else pairs, seed=seed).refs(range(12)))
        for seed in range(4)
    ]
    assert len(set(orders)) == 4


def test_ranks_and_micro_batches_divide_the_same_steps(tmp_path):
    write_store_of(tmp_path, [*coco_pairs(9), *video_pairs(4)])
    whole = open_set(tmp_path, batch_size=7)
    parts = open_set(tmp_path, batch_size=7, micro_batch_size=2)
    for step in (0, 3):
        expected = whole.step_refs(step)[0]
        for num_ranks in (1, 2, 3, 7):
            shares = [parts.step_refs(step, rank, num_ranks) for rank in range(num_ranks)]
            assert [ref for share in shares for micro in share for ref in micro] == expected
            assert all(len(micro) <= 2 for share in shares for micro in share)
    with pytest.raises(ConfigurationError, match="8 workers"):
        whole.step_refs(0, 0, 8)


def test_steps_come_from_epochs_unless_they_are_given(tmp_path):
    training_set = open_set(tmp_path, [*coco_pairs(9), *video_pairs(4)])
    assert training_set.num_samples() == 13
    assert [training_set.num_samples(source) for source in SOURCES] == [9, 4]
    assert training_set.num_steps(TrainingConfig(batch_size=6)) == 3
    assert training_set.num_steps(TrainingConfig(batch_size=6, num_epochs=2.5)) == 6
    assert training_set.num_steps(TrainingConfig(batch_size=6, num_epochs=0.01)) == 1
    assert training_set.num_steps(TrainingConfig(batch_size=6, num_steps=77)) == 77


# ---- subjects that share a target


def test_pairs_with_the_same_target_and_caption_are_one_sample(tmp_path):
    pairs = [
        StoredPair("coco/train/1/a", 1, 100, 100),
        StoredPair("coco/train/2/a", 2, 101, 100),  # the same caption under another picture
        StoredPair("coco/train/1/b", 3, 100, 100),
        StoredPair("coco/train/1/c", 1, 100, 100),  # a subject that is there already
        StoredPair("coco/train/1/d", 4, 100, 102),  # the same picture with another caption
    ]
    grouped = open_set(tmp_path, pairs, max_subjects=4)
    assert sorted(ref.pairs for ref in grouped.refs(range(3))) == [(0, 2), (1,), (4,)]
    single = open_set(tmp_path, max_subjects=1)
    assert sorted(ref.pairs for ref in single.refs(range(5))) == [(0,), (1,), (2,), (3,), (4,)]


def test_of_too_many_subjects_every_position_draws_some(tmp_path):
    training_set = open_set(tmp_path, coco_pairs(1, per_picture=4), max_subjects=2)
    drawn = [ref.pairs for ref in training_set.refs(range(60))]
    assert {len(pairs) for pairs in drawn} == {2}
    assert len(set(drawn)) == 6  # all ways to take 2 of 4
    assert [ref.pairs for ref in training_set.refs([40, 7])] == [drawn[40], drawn[7]]


def test_subjects_that_nobody_shares_are_told(tmp_path):
    assert "every sample has one subject" in open_set(tmp_path, coco_pairs(3), max_subjects=2).notes[-1]
    shared = open_set(tmp_path / "shared", [*coco_pairs(2, per_picture=2), *video_pairs(1)], max_subjects=2)
    assert shared.notes == ()


# ---- held out


def test_whole_pictures_and_videos_are_held_out(tmp_path):
    pairs = [*coco_pairs(150, per_picture=2), *video_pairs(50, per_video=3)]
    training_set = open_set(tmp_path, pairs, store={"per_shard": 200}, held_out_share=0.2)
    held = training_set.held_out_pairs()
    assert held == [pair.pair_id for pair in pairs if pair.pair_id in set(held)]
    trained = {
        pairs_of(ref, pairs)[0].pair_id for ref in training_set.refs(range(2 * max(training_set.num_samples(), 300)))
    }
    assert trained | set(held) == {pair.pair_id for pair in pairs}
    groups = [{one.rpartition("/")[0] for one in ids} for ids in (trained, held)]
    assert not groups[0] & groups[1]
    # 200 draws with a share of 0.2: 40, standard deviation 5.7.
    assert 20 <= len(groups[1]) <= 60


def test_what_is_held_out_depends_on_the_seed_and_not_on_the_other_pairs(tmp_path):
    write_store_of(tmp_path / "few", coco_pairs(60))
    write_store_of(tmp_path / "many", coco_pairs(90))
    held = {
        (name, seed): set(open_set(tmp_path / name, held_out_share=0.3, seed=seed).held_out_pairs())
        for name in ("few", "many")
        for seed in (0, 1)
    }
    assert held["few", 0] < held["many", 0]
    assert held["few", 0] != held["few", 1]


@pytest.mark.parametrize("share", [0.001, 0.5])
def test_small_sets_keep_something_of_each(tmp_path, share):
    """The small share would round to nothing; the large one would take both pictures for a quarter of the seeds."""
    write_store_of(tmp_path, [*coco_pairs(2), *video_pairs(1)])
    for seed in range(12):
        training_set = open_set(tmp_path, held_out_share=share, seed=seed)
        assert [training_set.num_samples(source) for source in SOURCES] == [1, 1]
        assert len(training_set.held_out) == 1


def test_a_single_picture_cannot_be_held_out(tmp_path):
    training_set = open_set(tmp_path, coco_pairs(1, per_picture=3), held_out_share=0.5)
    assert training_set.num_samples() == 3
    assert not len(training_set.held_out)
    assert any("none is held out" in note for note in training_set.notes)
    assert list(training_set.held_out_batches(5)) == []


def test_held_out_batches_are_the_same_every_time_and_for_any_number_of_ranks(tmp_path):
    pairs = coco_pairs(40)
    training_set = open_set(tmp_path, pairs, held_out_share=0.5)
    alone = list(training_set.held_out_batches(7, batch_size=3))
    assert [len(batch) for batch in alone] == [3, 3, 1]
    means = torch.cat([batch.mean for batch in alone])
    positions = torch.cat([batch.positions for batch in alone])
    assert positions.tolist() == list(range(HELD_OUT_POSITION, HELD_OUT_POSITION + 7))
    for num_ranks in (2, 9):
        shared = [batch for rank in range(num_ranks) for batch in training_set.held_out_batches(7, rank, num_ranks, 2)]
        assert torch.equal(torch.cat([batch.mean for batch in shared]), means)
        assert torch.equal(torch.cat([batch.positions for batch in shared]), positions)
    held = set(training_set.held_out_pairs())
    everything = training_set.held_out_refs(range(len(training_set.held_out)))
    assert {pairs_of(ref, pairs)[0].pair_id for ref in everything} == held
    assert [ref.pairs for ref in everything] != sorted(ref.pairs for ref in everything)


# ---- sources


def test_a_source_that_is_absent_is_left_out_and_told(tmp_path):
    training_set = open_set(tmp_path, coco_pairs(5))
    assert {ref.source for ref in training_set.refs(range(20))} == {0}
    assert training_set.notes == ("the store has no pairs of youtube_vis; it is left out",)


def test_a_source_without_weight_is_neither_trained_on_nor_held_out(tmp_path):
    pairs = [*coco_pairs(30), *video_pairs(30)]
    training_set = open_set(tmp_path, pairs, youtube_vis=SourceConfig(weight=0), held_out_share=0.3)
    assert training_set.num_samples("youtube_vis") == 0
    assert {ref.source for ref in training_set.refs(range(50))} == {0}
    assert all(pair_id.startswith("coco/") for pair_id in training_set.held_out_pairs())
    assert training_set.notes == ()


def test_a_store_without_any_wanted_source_is_refused(tmp_path):
    write_store_of(tmp_path, coco_pairs(5))
    with pytest.raises(ConfigurationError, match=r"no pairs of youtube_vis.*training\.coco\.weight is 0"):
        open_set(tmp_path, coco=SourceConfig(weight=0))
    write_store_of(tmp_path / "odd", [StoredPair("pets/1/a", 1, 1, 1)])
    with pytest.raises(ConfigurationError, match=r"pair pets/1/a .* source 'pets'"):
        open_set(tmp_path / "odd")


# ---- the store


def test_stores_that_do_not_hold_what_is_asked_are_refused(tmp_path):
    write_store_of(tmp_path / "features", coco_pairs(2))
    write_store_of(tmp_path / "latents", coco_pairs(2), policy="latents")
    write_store_of(tmp_path / "foreground", coco_pairs(2), tokens="foreground")
    assert open_set(tmp_path / "features", features="stored").stored_features
    assert not open_set(tmp_path / "latents", features="recompute").stored_features
    with pytest.raises(ConfigurationError, match=r"training\.features is stored, .* policy latents.*recompute or auto"):
        open_set(tmp_path / "latents", features="stored")
    with pytest.raises(ConfigurationError, match=r"features is recompute, .* policy features.*stored or auto"):
        open_set(tmp_path / "features", features="recompute")
    with pytest.raises(ConfigurationError, match=r"mask_padding is false, .* foreground"):
        open_set(tmp_path / "foreground", mask_padding=False)
    with pytest.raises(ConfigurationError, match=r"subject_timestep is adaptive, .* t_sub 1\. .*policy latents"):
        open_set(tmp_path / "features", subject_timestep="adaptive")
    assert not open_set(tmp_path / "latents", subject_timestep="adaptive").stored_features
    with pytest.raises(ConfigurationError, match=r"subject_encoder is dino, .* tokens of the frozen .*policy latents"):
        open_set(tmp_path / "features", subject_encoder="dino")
    assert not open_set(tmp_path / "latents", subject_encoder="trained").stored_features
    with pytest.raises(ConfigurationError, match=r"made with model f+, but model 0+ is wanted"):
        TrainingSet.open(str(tmp_path / "features"), TrainingConfig(), model_fingerprint="0" * 32)
    with pytest.raises(ConfigurationError, match="is no feature store"):
        open_set(tmp_path / "nothing")


def test_the_digest_is_that_of_the_stored_content(tmp_path):
    digests = [
        open_set(tmp_path / name, pairs).digest
        for name, pairs in (("a", coco_pairs(5)), ("b", coco_pairs(5)), ("c", coco_pairs(6)))
    ]
    assert digests[0] == digests[1] != digests[2]
    assert open_set(tmp_path / "a", seed=5, max_subjects=2).digest == digests[0]


def test_the_pairs_are_where_the_store_says(tmp_path):
    training_set = open_set(tmp_path, coco_pairs(3))
    assert training_set.pairs_uri == ""
    record = RunRecord(new_run_id(), "finished", now_text(), inputs={"pairs_uri": "s3://bucket/pairs"})
    training_set.store.output.write_run(record)
    assert training_set.pairs_uri == "s3://bucket/pairs"


def test_it_travels_to_other_processes(tmp_path):
    training_set = open_set(tmp_path, [*coco_pairs(20), *video_pairs(5)], held_out_share=0.2)
    before = training_set.read_batch(training_set.refs(range(5)))
    other = pickle.loads(pickle.dumps(training_set))
    assert other.refs(range(30)) == training_set.refs(range(30))
    assert torch.equal(other.read_batch(other.refs(range(5))).mean, before.mean)
    assert other.digest == training_set.digest


def test_a_sample_that_is_not_in_the_store_is_named(tmp_path):
    """Only code that is wrong writes such a store, but a step of a long run is no place to find that out without it."""
    training_set = open_set(tmp_path, coco_pairs(6), store={"lost_subjects": {4}})
    refs = training_set.refs(range(6))
    assert len(training_set.read_batch([ref for ref in refs if ref.pairs != (4,)])) == 5
    with pytest.raises(ConfigurationError, match=rf"sample coco/train/0004/0: '{subject_key(4)}' is not among the 5"):
        training_set.read_batch(refs)


def test_a_damaged_shard_names_the_sample(tmp_path):
    training_set = open_set(tmp_path, coco_pairs(9), store={"per_shard": 3})
    path = tmp_path / "latents" / "r0-00001.parquet"
    path.write_bytes(path.read_bytes()[:-7])
    refs = training_set.refs(range(9))
    damaged = next(ref for ref in refs if ref.pairs[0] in (3, 4, 5))
    with pytest.raises(
        ConfigurationError, match=rf"sample coco/train/000{damaged.pairs[0]}/0: .*latents/r0-00001.parquet is damaged"
    ):
        training_set.read_batch(refs)
    assert len(training_set.read_batch([ref for ref in refs if ref.pairs[0] not in (3, 4, 5)])) == 6


def test_a_shard_of_samples_with_other_rows_than_the_manifest_says_is_refused(tmp_path):
    write_store_of(tmp_path, coco_pairs(6), per_shard=3)
    samples = tmp_path / "samples"
    other = write_store_of(tmp_path / "other", coco_pairs(2), per_shard=2)
    (samples / "r0-00001.parquet").write_bytes(other.output.read("samples/r0-00000.parquet"))
    with pytest.raises(ConfigurationError, match=r"samples/r0-00001.parquet has 2 rows, but manifest.json says 3"):
        open_set(tmp_path)
