"""Batches ahead of the train step: the same however they are read, in bounded memory, with errors in their place."""

import threading
import time
from itertools import chain

import pytest
import torch

from ezigen.config import ConfigurationError, TrainingConfig
from tasks.storage import Locations
from tasks.training.data import TrainingSet
from tasks.training.loader import BatchLoader
from tests.faulty_proxy import run_faulty_proxy
from tests.features.stores import BLOCKS
from tests.training.data_stores import coco_pairs, video_pairs, write_store_of

torch.set_num_threads(1)

PAIRS = [*coco_pairs(9, per_picture=2), *video_pairs(5)]


@pytest.fixture
def stored(tmp_path):
    write_store_of(tmp_path, PAIRS)
    return tmp_path


def open_set(root, locations=None, kind=TrainingSet, **config):
    config = {"batch_size": 6, "micro_batch_size": 4, "max_subjects": 2, "held_out_share": 0.0, **config}
    return kind.open(str(root), TrainingConfig(**config), locations)


def load(training_set, first, last, *args, **options):
    with BatchLoader(training_set, first, last, *args, **options) as loader:
        return list(loader)


def numbers_of(batch):
    """Every tensor of a batch, by name."""
    found = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    for block in BLOCKS if batch.features is not None else ():
        found[block.name] = batch.features.tokens[block.name]
        found[f"{block.name} mask"] = batch.features.full_mask()[block.name]
    return {name: value.cpu() for name, value in found.items()}


def assert_same(one, other):
    """Steps of equal micro-batches, bit for bit."""
    assert [len(step) for step in one] == [len(step) for step in other]
    for batch, counterpart in zip(chain(*one), chain(*other), strict=True):
        found, expected = numbers_of(batch), numbers_of(counterpart)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert batch.subject_classes == counterpart.subject_classes


def read_here(training_set, first, last):
    return [[training_set.read_batch(refs) for refs in training_set.step_refs(step)] for step in range(first, last)]


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-batches")]


@pytest.mark.parametrize(("num_threads", "prefetch"), [(1, 1), (3, 2), (2, 50)])
def test_steps_come_in_order_whatever_reads_them(stored, num_threads, prefetch):
    training_set = open_set(stored)
    assert_same(load(training_set, 0, 12, num_threads=num_threads, prefetch=prefetch), read_here(training_set, 0, 12))


@pytest.mark.parametrize("store", [{"dtype": "fp8"}, {"tokens": "foreground"}, {"policy": "latents"}])
def test_every_kind_of_store_can_be_read_by_several_threads(tmp_path, store):
    write_store_of(tmp_path, PAIRS, **store)
    training_set = open_set(tmp_path)
    assert_same(load(training_set, 0, 10, num_threads=3, prefetch=4), read_here(training_set, 0, 10))


def test_row_groups_of_several_subjects_can_be_read_by_several_threads(tmp_path):
    """A reader keeps the last row group, and every thread must get the one that it asked for."""
    write_store_of(tmp_path, PAIRS, per_shard=4, row_group_mib=1)
    training_set = open_set(tmp_path)
    assert_same(load(training_set, 0, 10, num_threads=6, prefetch=6), read_here(training_set, 0, 10))


def test_a_resumed_loader_goes_on_where_another_stopped(stored):
    whole = load(open_set(stored), 0, 9)
    with BatchLoader(open_set(stored), 0, 9) as loader:
        before = [next(loader) for _ in range(4)]
    after = load(open_set(stored), 4, 9)
    assert_same([*before, *after], whole)
    assert load(open_set(stored), 9, 9) == []


def test_ranks_read_the_same_steps_in_parts(stored):
    training_set = open_set(stored, micro_batch_size=0)
    whole = load(training_set, 2, 6)
    for num_ranks in (2, 4, 6):
        parts = [load(training_set, 2, 6, rank, num_ranks) for rank in range(num_ranks)]
        for step, (batch,) in enumerate(whole):
            shares = [batch for part in parts for batch in part[step]]
            for name in ("positions", "mean", "variance", "sources"):
                assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(batch, name))
            assert torch.equal(torch.cat([share.text.tokens for share in shares]), batch.text.tokens)


def test_more_ranks_than_samples_are_refused_before_anything_is_read(stored):
    with pytest.raises(ConfigurationError, match="7 workers cannot share a batch of 6"):
        BatchLoader(open_set(stored), 0, 4, 0, 7)
    assert not reading_threads()


class Counted(TrainingSet):
    """Counts the micro-batches whose reading has begun."""

    def __init__(self, *args):
        super().__init__(*args)
        self.begun = []

    def read_batch(self, *args):
        self.begun.append(threading.current_thread().name)
        return super().read_batch(*args)


def test_no_more_than_the_prefetched_steps_are_read_ahead(stored):
    training_set = open_set(stored, kind=Counted)
    with BatchLoader(training_set, 0, 20, num_threads=4, prefetch=3) as loader:
        for step in range(10):
            next(loader)
            allowed = 2 * (step + 1 + 3)
            deadline_s = time.monotonic() + 30
            while len(training_set.begun) < allowed and time.monotonic() < deadline_s:
                time.sleep(0.001)
            time.sleep(0.01)  # idle threads would go on within microseconds
            assert len(training_set.begun) == allowed


def test_closing_ends_the_threads_and_reads_nothing_more(stored):
    training_set = open_set(stored, kind=Counted)
    loader = BatchLoader(training_set, 0, 1000, num_threads=3, prefetch=100)
    next(loader)
    assert reading_threads()
    loader.close()
    assert not reading_threads()
    begun = len(training_set.begun)
    assert begun < 202
    assert list(loader) == []
    loader.close()
    assert len(training_set.begun) == begun


def test_an_error_comes_at_its_step_and_ends_the_loader(stored):
    training_set = open_set(stored, batch_size=2, micro_batch_size=1)
    path = stored / "latents" / "r0-00002.parquet"
    lost = set(range(14, 21))
    broken = next(step for step in range(1, 20) if _touches(training_set, step, lost))
    healthy = next(step for step in range(20) if not _touches(training_set, step, lost))
    path.unlink()
    with BatchLoader(training_set, healthy, healthy + 1) as loader:
        assert len(next(loader)) == 2
    loader = BatchLoader(training_set, broken, broken + 5)
    with pytest.raises(ConfigurationError, match=r"sample .*/.*: .*latents/r0-00002.parquet is damaged: it is missing"):
        next(loader)
    assert list(loader) == []
    assert not reading_threads()


def _touches(training_set, step, rows):
    return any(rows & set(ref.pairs) for refs in training_set.step_refs(step) for ref in refs)


def test_waiting_for_data_is_counted(stored):
    with BatchLoader(open_set(stored), 0, 5) as loader:
        assert loader.waited_s == 0.0
        list(loader)
        assert loader.waited_s > 0.0


@pytest.mark.slow
def test_an_object_store_gives_the_same_batches(s3_server, s3_folder, tmp_path):
    locations = Locations(storage_options=s3_server.storage_options)
    write_store_of(s3_folder, PAIRS, locations=locations)
    write_store_of(tmp_path, PAIRS)
    there, here = open_set(s3_folder, locations), open_set(tmp_path)
    assert there.digest == here.digest
    assert there.held_out_pairs() == here.held_out_pairs()
    assert_same(load(there, 0, 6, num_threads=3, prefetch=3), load(here, 0, 6))


@pytest.mark.slow
def test_a_store_that_cannot_be_reached_names_the_sample_and_is_no_error_of_the_configuration(s3_server, s3_folder):
    """The run tries again elsewhere or later; a configuration error would end it for good."""
    write_store_of(s3_folder, PAIRS, locations=Locations(storage_options=s3_server.storage_options))
    with run_faulty_proxy(s3_server.endpoint_url) as proxy:
        locations = Locations(storage_options={**s3_server.storage_options, "endpoint_url": proxy.url})
        training_set = open_set(s3_folder, locations)
        training_set.read_batch(training_set.refs([0]))
        proxy.always = "403"
        with pytest.raises(PermissionError) as caught, BatchLoader(training_set, 0, 3) as loader:
            next(loader)
    assert "while reading the sample " in caught.value.__notes__[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("store", [{}, {"dtype": "fp8"}, {"tokens": "foreground"}, {"policy": "latents"}])
def test_a_gpu_gets_the_same_numbers(tmp_path, store):
    """Also while the batches before are still being computed on: each one is compared after a long kernel."""
    write_store_of(tmp_path, PAIRS, **store)
    training_set = open_set(tmp_path)
    expected = read_here(training_set, 0, 30)
    busy = torch.randn(4096, 4096, device="cuda")
    found = []
    with BatchLoader(training_set, 0, 30, 0, 1, "cuda", num_threads=3, prefetch=3) as loader:
        for step in loader:
            for _ in range(20):
                busy = busy @ busy / 4096
            found.append([numbers_of(batch) for batch in step])
            del step
    for step, batches in zip(expected, found, strict=True):
        for batch, numbers in zip(step, batches, strict=True):
            # The device rounds tokens of fp8 to fp16 after one multiplication, as the CPU does.
            assert all(torch.equal(numbers[name], value) for name, value in numbers_of(batch).items())
