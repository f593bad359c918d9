"""The feature store on a real S3 server: one request for a subject, and a look at what comes back."""

import pickle

import pytest
import torch

from ezigen.config import ConfigurationError
from tasks.features import FeatureStore, find_done_shards, text_id
from tasks.storage import Locations
from tests.faulty_proxy import run_faulty_proxy
from tests.features.stores import (
    BLOCKS,
    SD21,
    SHAPE,
    picture_key,
    random_features,
    subject_key,
    target_of,
    text,
    write_features,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def proxied(s3_server, s3_folder):
    """The folder, and a proxy in front of the server that counts requests."""
    with run_faulty_proxy(s3_server.endpoint_url) as proxy:
        yield s3_folder, proxy, Locations(storage_options={**s3_server.storage_options, "endpoint_url": proxy.url})


def requests_of(proxy, action) -> int:
    before = proxy.num_requests
    action()
    return proxy.num_requests - before


@pytest.mark.parametrize(
    ("shape", "config", "megabytes"),
    [
        (SHAPE, {}, 0.0025),
        (SHAPE, {"tokens": "foreground"}, 0),
        (SD21, {}, 23.1),
        (SD21, {"dtype": "fp8"}, 11.7),
        (SD21, {"tokens": "foreground"}, 0),
    ],
    ids=["small", "small foreground", "SD2.1", "SD2.1 fp8", "SD2.1 foreground"],
)
def test_a_row_costs_one_request(proxied, shape, config, megabytes):
    folder, proxy, locations = proxied
    write_features(folder, shape=shape, per_shard=2, **config)
    store = FeatureStore.open(folder, locations)
    store.subject_ids()
    store.read_target(picture_key(0))
    store.read_text(text_id(text(0)))
    assert requests_of(proxy, lambda: store.read_subject(subject_key(3))) == 1
    assert requests_of(proxy, lambda: store.read_target(picture_key(3))) == 1
    assert requests_of(proxy, lambda: store.read_text(text_id(text(3)))) == 1
    assert requests_of(proxy, lambda: store.read_subjects([subject_key(n) for n in (0, 1, 2)])) == 3

    packed = store.read_subjects([subject_key(3)]).packed
    tensors = [*packed.values.values(), *(packed.scales or {}).values()]
    if megabytes:
        assert sum(tensor.nbytes for tensor in tensors) / 1e6 == pytest.approx(megabytes, rel=0.01)
    if not config:
        expected = random_features(3, shape.blocks)
        for block in shape.blocks:
            assert torch.equal(packed.values[block.name], expected.tokens[block.name].half())


def test_opening_and_the_first_read_cost_a_handful(proxied):
    folder, proxy, locations = proxied
    write_features(folder)
    # store.json, manifest.json and index.parquet, each looked up and read, then the row.
    assert requests_of(proxy, lambda: FeatureStore.open(folder, locations).read_subject(subject_key(0))) <= 7


def test_what_is_stored_is_what_a_folder_would_hold(s3_folder, tmp_path):
    there, here = write_features(s3_folder), write_features(tmp_path)
    assert there.shards == here.shards
    store = pickle.loads(pickle.dumps(FeatureStore.open(s3_folder)))
    assert store.verify() == []
    assert find_done_shards(there.output, there.identity, verify=True) == here.shards
    for number, batch in enumerate(store.iterate(batch_size=1)):
        for block in BLOCKS:
            assert torch.equal(batch.features.tokens[block.name], random_features(number).tokens[block.name].half())
    assert torch.equal(store.read_target(picture_key(4)).mean, target_of(4)[0].half().float())
    assert sum(len(batch) for batch in store.samples()) == 10


def test_a_damaged_byte_is_noticed_by_the_read_itself(s3_folder):
    written = write_features(s3_folder, num_shards=1)
    data = bytearray(written.output.read("subjects/r0-00000.parquet"))
    data[data.index(random_features(2).tokens[BLOCKS[1].name].half().numpy().tobytes())] ^= 4
    written.output.write("subjects/r0-00000.parquet", bytes(data))
    store = FeatureStore.open(s3_folder)
    store.read_subject(subject_key(1))
    with pytest.raises(ConfigurationError, match="the checksum of row group 2 differs"):
        store.read_subject(subject_key(2))
    assert store.verify() == ["r0-00000"]
    written.output.write("subjects/r0-00000.parquet", bytes(data[: len(data) // 2]))
    with pytest.raises(ConfigurationError, match=r"r0-00000\.parquet is damaged"):
        FeatureStore.open(s3_folder).read_subject(subject_key(4))


@pytest.mark.parametrize("fault", ["503", "reset", "truncate"])
def test_trouble_that_passes_is_not_noticed(proxied, fault):
    folder, proxy, locations = proxied
    write_features(folder, num_shards=1)
    store = FeatureStore.open(folder, locations)
    store.subject_ids()
    proxy.faults.append(fault)
    name = BLOCKS[0].name
    assert torch.equal(store.read_subject(subject_key(2)).tokens[name], random_features(2).tokens[name].half())
    assert not proxy.faults


def test_row_groups_of_several_subjects_can_be_scanned(s3_folder):
    write_features(s3_folder, num_shards=1, row_group_mib=1)
    batches = list(FeatureStore.open(s3_folder).iterate(batch_size=2))
    assert [one for batch in batches for one in batch.ids] == [subject_key(number) for number in range(5)]
