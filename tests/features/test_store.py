"""The feature store: what goes in comes out, by id, in order, and with plain pyarrow."""

import dataclasses
import json
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ezigen.config import ConfigurationError
from ezigen.subject import SubjectFeatures
from ezigen.subject.foreground import touched_cells
from tasks.features import (
    FeatureShardWriter,
    FeatureStore,
    PackedFeatures,
    find_done_shards,
    text_id,
    write_index,
    write_store,
)
from tasks.features.block_pool import BlockPool
from tasks.features.foreground import kept_tokens, pack_cells, unpack_cells
from tasks.features.identity import PREPROCESSING
from tasks.storage import OutputFolder
from tests.features.stores import (
    BLOCKS,
    SD21,
    SD21_BLOCKS,
    SHAPE,
    embeddings_of,
    identity_of,
    mask_of,
    picture_key,
    random_features,
    subject_class,
    subject_key,
    target_of,
    text,
    write_features,
    write_shard,
)

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
DOCS = Path(__file__).parents[2] / "docs" / "features.md"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """For comparing bit by bit."""
    return tensor.contiguous().view(torch.uint8)


class TestSubjects:
    @pytest.mark.parametrize("row_group_mib", [0, 1])
    @pytest.mark.parametrize("dtype", ["fp16", "bf16"])
    def test_every_subject_comes_back_bit_by_bit_after_the_cast(self, tmp_path, dtype, row_group_mib):
        write_features(tmp_path, dtype=dtype, row_group_mib=row_group_mib)
        store = FeatureStore.open(str(tmp_path), check=True)
        assert len(store) == 10
        assert store.subject_ids() == sorted(subject_key(number) for number in range(10))
        for number in range(10):
            features, expected = store.read_subject(subject_key(number)), random_features(number)
            assert list(features.tokens) == [block.name for block in BLOCKS]
            assert features.mask is None
            for name, tokens in features.tokens.items():
                assert tokens.dtype == DTYPES[dtype]
                assert torch.equal(bits(tokens), bits(expected.tokens[name].to(DTYPES[dtype])))

    def test_a_subject_alone_in_a_gathered_row_group_is_read_like_its_neighbours(self, tmp_path):
        """Its place is known byte by byte, theirs are not."""
        output, identity = OutputFolder(str(tmp_path)), identity_of()
        write_store(output, identity, row_group_mib=1)
        shards = {
            name: write_shard(output, identity, name, numbers, row_group_mib=1)
            for name, numbers in (("r0-00000", range(4)), ("r0-00001", range(4, 5)))
        }
        write_index(output, identity, shards)
        batch = FeatureStore.open(str(tmp_path)).read_subjects([subject_key(number) for number in range(5)])
        for name, tokens in batch.features.tokens.items():
            assert torch.equal(tokens, torch.cat([random_features(n).tokens[name] for n in range(5)]).half())

    def test_several_subjects_keep_the_order_in_which_they_are_asked_for(self, tmp_path):
        write_features(tmp_path)
        numbers = [7, 0, 3, 7]
        batch = FeatureStore.open(str(tmp_path)).read_subjects([subject_key(number) for number in numbers])
        assert batch.subject_classes == tuple(subject_class(number) for number in numbers)
        for name, tokens in batch.features.tokens.items():
            expected = torch.cat([random_features(number).tokens[name] for number in numbers])
            assert torch.equal(tokens, expected.half())

    @pytest.mark.parametrize("row_group_mib", [0, 1])
    @pytest.mark.parametrize("tokens", ["all", "foreground"])
    def test_iterating_gives_every_subject_once_in_stored_order(self, tmp_path, tokens, row_group_mib):
        write_features(tmp_path, tokens=tokens, row_group_mib=row_group_mib)
        store = FeatureStore.open(str(tmp_path))
        batches = list(store.iterate(batch_size=3))
        assert [len(batch.ids) for batch in batches] == [3, 2, 3, 2]
        assert [one for batch in batches for one in batch.ids] == [subject_key(number) for number in range(10)]
        for batch in batches:
            again = store.read_subjects(batch.ids)
            for name, values in batch.features.tokens.items():
                assert torch.equal(values, again.features.tokens[name])

    def test_iterating_over_some_blocks_of_one_shard_reads_just_them(self, tmp_path):
        write_features(tmp_path)
        wanted = BLOCKS[1].name
        (batch,) = FeatureStore.open(str(tmp_path)).iterate(["r0-00001"], blocks=[wanted])
        assert list(batch.features.tokens) == [wanted]
        assert torch.equal(
            batch.features.tokens[wanted],
            torch.cat([random_features(number).tokens[wanted] for number in range(5, 10)]).half(),
        )

    def test_several_pictures_added_at_once_are_rows_of_their_own(self, tmp_path):
        written = write_features(tmp_path, num_shards=1, per_shard=1)
        features = random_features(77, count=3)
        with FeatureShardWriter(written.output, written.identity, "r0-00009") as writer:
            writer.add_subjects([subject_key(n) for n in (20, 21, 22)], ["a", "b", "c"], features)
            writer.close(pa.table({name: ["x"] for name in ("pair_id", "subject_id", "target_id", "text_id")}))
        rows = pq.read_table(tmp_path / "subjects" / "r0-00009.parquet").to_pylist()
        assert [row["subject_class"] for row in rows] == ["a", "b", "c"]
        for index, row in enumerate(rows):
            for name, tokens in features.tokens.items():
                assert row[name] == tokens[index].half().numpy().tobytes()

    def test_what_was_read_stays_as_it_is_while_more_is_read(self, tmp_path):
        """Memory is used again only when nobody holds a view of it."""
        write_features(tmp_path, num_shards=1, per_shard=3, dtype="fp16")
        store = FeatureStore.open(str(tmp_path))
        first = store.read_subject(subject_key(0)).tokens[BLOCKS[2].name]
        before = first.clone()
        for _ in range(3):
            store.read_subjects([subject_key(1), subject_key(2)])
        assert torch.equal(first, before)


class TestForeground:
    def test_tokens_that_the_mask_touches_come_back_and_no_others(self, tmp_path):
        write_features(tmp_path, tokens="foreground")
        store = FeatureStore.open(str(tmp_path), check=True)
        for number in range(10):
            batch = store.read_subjects([subject_key(number)])
            expected = random_features(number)
            for block in BLOCKS:
                kept = touched_by_pixels(mask_of(number), block.num_tokens)
                assert torch.equal(batch.kept[block.name][0], kept)
                assert torch.equal(batch.features.tokens[block.name][0], expected.tokens[block.name][0, kept].half())
        assert batch.features.mask is None

    def test_a_batch_pads_shorter_subjects_and_masks_the_padding(self, tmp_path):
        write_features(tmp_path, tokens="foreground")
        numbers = [1, 0, 3]
        store = FeatureStore.open(str(tmp_path))
        ids = [subject_key(number) for number in numbers]
        batch = store.read_subjects(ids)
        joined = SubjectFeatures.stack([store.read_subject(one) for one in ids])
        for block in BLOCKS:
            assert torch.equal(batch.features.tokens[block.name], joined.tokens[block.name])
            assert torch.equal(batch.features.mask[block.name], joined.mask[block.name])

    def test_a_pixel_in_the_last_corner_keeps_one_token_of_each_grid(self):
        mask = torch.zeros(64, 64)
        mask[63, 63] = 1
        kept = kept_tokens(touched_cells(mask, 8), BLOCKS)
        for block in BLOCKS:
            assert kept[block.name].nonzero().tolist() == [[block.num_tokens - 1]]

    @pytest.mark.parametrize("mask", [None, torch.zeros(64, 64)])
    def test_a_subject_without_a_mask_or_with_an_empty_one_keeps_all(self, mask):
        assert touched_cells(mask, 8).all()

    @pytest.mark.parametrize("size", [5, 8, 60, 64, 100])
    def test_masks_of_any_size_lie_over_the_grid(self, size):
        mask = torch.zeros(size, size)
        mask[: size // 2 + 1, 0] = 1
        cells = touched_cells(mask, 8)
        for row, column in np.argwhere(mask.numpy()):
            assert cells[int((row + 0.5) * 8 / size), int((column + 0.5) * 8 / size)]

    @pytest.mark.parametrize("side", [2, 3, 8, 64])
    def test_bits_of_a_mask_come_back(self, side):
        cells = torch.rand(side, side, generator=torch.Generator().manual_seed(side)) > 0.5
        assert torch.equal(unpack_cells(pack_cells(cells), side), cells)


def touched_by_pixels(mask: torch.Tensor | None, num_tokens: int) -> torch.Tensor:
    """An independent rule: cell by cell, is any pixel set?"""
    side = int(num_tokens**0.5)
    if mask is None:
        return torch.ones(num_tokens, dtype=torch.bool)
    step = mask.shape[0] // side
    cells = [
        mask[row * step : (row + 1) * step, column * step : (column + 1) * step].any()
        for row in range(side)
        for column in range(side)
    ]
    return torch.stack(cells).bool()


class TestTargetsAndTexts:
    def test_targets_come_back_with_their_variance(self, tmp_path):
        write_features(tmp_path)
        store = FeatureStore.open(str(tmp_path))
        for number in range(10):
            mean, variance = target_of(number)
            found = store.read_target(picture_key(number))
            assert torch.equal(found.mean, mean.half().float())
            # As small as they are (1e-9), which fp16 would have made zero.
            assert torch.allclose(found.variance, variance, rtol=2**-8, atol=0)
            assert found.variance[variance > 0].min() > 0

    @pytest.mark.parametrize("text_embeddings", [True, False])
    def test_texts_come_back_with_ids_and_embeddings(self, tmp_path, text_embeddings):
        write_features(tmp_path, text_embeddings=text_embeddings)
        store = FeatureStore.open(str(tmp_path))
        for number in range(10):
            found = store.read_text(text_id(text(number)))
            assert found.text == text(number)
            assert found.token_ids.tolist() == [number] * SHAPE.text_shape[0]
            if text_embeddings:
                assert torch.equal(found.embeddings, embeddings_of(number).half())
            else:
                assert found.embeddings is None

    def test_samples_come_back_with_all_their_columns(self, tmp_path):
        write_features(tmp_path)
        rows = [row for batch in FeatureStore.open(str(tmp_path)).samples() for row in batch.to_pylist()]
        assert [row["pair_id"] for row in rows] == [f"coco/train/{number}" for number in range(10)]
        assert rows[3] == {
            "pair_id": "coco/train/3",
            "subject_id": subject_key(3),
            "target_id": picture_key(3),
            "text_id": text_id(text(3)),
            "source": "coco",
        }

    def test_policy_latents_stores_latents_and_refuses_to_read_features(self, tmp_path):
        write_features(tmp_path, policy="latents")
        store = FeatureStore.open(str(tmp_path))
        latent = store.read_subject_latent(subject_key(4))
        assert torch.equal(latent, target_of(4)[0].half().float())
        with pytest.raises(ConfigurationError, match="holds subject latents"):
            store.read_subject(subject_key(4))


class TestPlainParquet:
    @pytest.mark.parametrize("tokens", ["all", "foreground"])
    @pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp8"])
    def test_pyarrow_and_the_index_read_the_same_bytes(self, tmp_path, dtype, tokens):
        write_features(tmp_path, num_shards=1, dtype=dtype, tokens=tokens)
        store = FeatureStore.open(str(tmp_path), check=True)
        table = pq.read_table(tmp_path / "subjects" / "r0-00000.parquet", page_checksum_verification=True)
        for row in table.to_pylist():
            packed = store.read_subjects([row["subject_id"]]).packed
            for block in BLOCKS:
                assert bits(packed.values[block.name]).numpy().tobytes() == row[block.name]
                if dtype == "fp8":
                    assert packed.scales[block.name].numpy().tobytes() == row[block.name + ".scale"]

    def test_every_subject_is_a_row_group_of_required_uncompressed_columns(self, tmp_path):
        write_features(tmp_path, num_shards=1)
        footer = pq.read_metadata(tmp_path / "subjects" / "r0-00000.parquet")
        assert footer.num_row_groups == footer.num_rows == 5
        position = 4  # behind the magic number
        for group in range(5):
            for column in range(footer.num_columns):
                chunk = footer.row_group(group).column(column)
                assert (chunk.compression, chunk.has_dictionary_page) == ("UNCOMPRESSED", False)
                assert chunk.data_page_offset == position  # nothing lies between the columns
                position += chunk.total_compressed_size

    def test_the_schema_says_dtype_shape_and_block(self, tmp_path):
        write_features(tmp_path, num_shards=1, dtype="bf16")
        schema = pq.read_schema(tmp_path / "subjects" / "r0-00000.parquet")
        field = schema.field(BLOCKS[0].name)
        assert field.type == pa.binary(64 * 12 * 2)
        assert not field.nullable
        assert field.metadata == {
            b"ezigen.dtype": b"bf16",
            b"ezigen.shape": b"[64, 12]",
            b"ezigen.block": BLOCKS[0].name.encode(),
        }
        assert schema.metadata[b"ezigen.kind"] == b"features.subjects"
        assert schema.metadata[b"ezigen.identity"] == identity_of(dtype="bf16").digest().encode()
        assert json.loads(schema.metadata[b"ezigen.store"])["t_sub"] == 1

    def test_the_snippets_of_the_docs_run(self, tmp_path, monkeypatch):
        write_features(tmp_path / "store", tokens="all")
        monkeypatch.chdir(tmp_path)
        snippets = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
        assert len(snippets) >= 2
        names: dict[str, object] = {"wanted": subject_key(3)}
        for snippet in snippets:
            exec(snippet, names)
        expected = random_features(3)
        for name, tokens in names["tokens"].items():
            assert np.array_equal(tokens, expected.tokens[name][0].half().numpy())
        assert torch.equal(names["features"].tokens[BLOCKS[0].name], expected.tokens[BLOCKS[0].name].half())


class TestRefusals:
    @pytest.mark.parametrize(
        ("field", "value", "shown"),
        [
            ("model_fingerprint", "a" * 32, f"with model {'f' * 32}, but model {'a' * 32} is wanted"),
            ("t_sub", 300, "with t_sub 1, but t_sub 300 is wanted"),
            ("size_px", 512, "with size_px 64, but size_px 512 is wanted"),
            ("dtype", "fp8", "with dtype fp16, but dtype fp8 is wanted"),
            ("network_dtype", "bf16", "with network_dtype fp32, but network_dtype bf16 is wanted; set model.dtype"),
            ("preprocessing", 0, f"with preprocessing {PREPROCESSING}, but preprocessing 0 is wanted"),
        ],
    )
    def test_another_model_t_sub_or_size_is_refused_by_name(self, tmp_path, field, value, shown):
        write_features(tmp_path, num_shards=1)
        with pytest.raises(ConfigurationError, match=re.escape(shown)):
            FeatureStore.open(str(tmp_path), expect={field: value})

    def test_what_was_preprocessed_otherwise_is_read_only_by_name(self, tmp_path):
        output = OutputFolder(str(tmp_path))
        identity = dataclasses.replace(identity_of(), preprocessing=PREPROCESSING + 1)
        write_store(output, identity)
        write_index(output, identity, {"r0-00000": write_shard(output, identity, "r0-00000", range(2))})
        shown = f"with preprocessing {PREPROCESSING + 1}, but preprocessing {PREPROCESSING} is wanted"
        with pytest.raises(ConfigurationError, match=shown):
            FeatureStore.open(str(tmp_path))
        with pytest.raises(ConfigurationError, match=shown):
            FeatureStore.open(str(tmp_path), expect={"t_sub": 1})
        assert len(FeatureStore.open(str(tmp_path), expect=identity)) == 2

    def test_a_whole_identity_is_compared_field_by_field(self, tmp_path):
        written = write_features(tmp_path, num_shards=1)
        assert FeatureStore.open(str(tmp_path), expect=written.identity).identity == written.identity
        with pytest.raises(ConfigurationError, match="t_sub 1, but t_sub 100 is wanted; write another store"):
            FeatureStore.open(str(tmp_path), expect=identity_of(t_sub=100))
        with pytest.raises(ConfigurationError, match="3 blocks: 64x12, 16x20, 4x40"):
            written.identity.check({"blocks": SD21_BLOCKS})
        with pytest.raises(ValueError, match="no field 'model'"):
            written.identity.check({"model": "mini"})

    @pytest.mark.parametrize("unknown", ["0" * 32, "", "nonsense", "Z" * 32])
    def test_an_unknown_id_is_a_key_error_that_says_where_it_was_sought(self, tmp_path, unknown):
        write_features(tmp_path)
        store = FeatureStore.open(str(tmp_path))
        with pytest.raises(KeyError, match="is not among the 10 subjects of"):
            store.read_subjects([subject_key(0), unknown])
        with pytest.raises(KeyError, match="is not among the 10 texts"):
            store.read_text(unknown)

    def test_a_folder_that_is_no_store_or_an_unfinished_one_is_named(self, tmp_path):
        with pytest.raises(ConfigurationError, match="is no feature store"):
            FeatureStore.open(str(tmp_path))
        written = write_features(tmp_path)
        (tmp_path / "manifest.json").unlink()
        with pytest.raises(ConfigurationError, match="is not finished"):
            FeatureStore.open(str(tmp_path))
        (tmp_path / "store.json").write_text("{")
        with pytest.raises(ConfigurationError, match="cannot be understood"):
            FeatureStore.open(written.output.root_uri)

    def test_a_file_of_another_identity_is_never_read(self, tmp_path):
        write_features(tmp_path / "one")
        write_features(tmp_path / "two", t_sub=5)
        for name in ("index.parquet", "samples/r0-00000.parquet"):
            (tmp_path / "one" / name).write_bytes((tmp_path / "two" / name).read_bytes())
        store = FeatureStore.open(str(tmp_path / "one"))
        with pytest.raises(ConfigurationError, match=r"index\.parquet is damaged"):
            store.read_subject(subject_key(0))
        with pytest.raises(ConfigurationError, match="belongs to a store of another identity"):
            list(store.samples())

    @pytest.mark.parametrize(
        ("dtype", "value"),
        [("fp16", float("nan")), ("fp16", 1e6), ("bf16", float("inf")), ("fp8", float("nan")), ("fp8", float("-inf"))],
    )
    def test_values_that_are_no_numbers_are_not_stored(self, tmp_path, dtype, value):
        written = write_features(tmp_path, num_shards=1, dtype=dtype)
        features = random_features(50, count=2)
        features.tokens[BLOCKS[1].name][1, 3, 3] = value
        writer = FeatureShardWriter(written.output, written.identity, "r0-00005")
        bad = subject_key(51)
        with writer, pytest.raises(ValueError, match=f"subject {bad}: block {BLOCKS[1].name}"):
            writer.add_subjects([subject_key(50), bad], ["a", "b"], features)

    def test_wrong_shapes_ids_and_policies_are_refused(self, tmp_path):
        written = write_features(tmp_path, num_shards=1)
        with FeatureShardWriter(written.output, written.identity, "r0-00005") as writer:
            with pytest.raises(ValueError, match="no id of 32 hex digits"):
                writer.add_subjects(["../../etc/passwd"], ["a"], random_features(1))
            with pytest.raises(ValueError, match="was encoded"):
                writer.add_subjects([subject_key(1)], ["a"], random_features(1, BLOCKS[:2]))
            with pytest.raises(ValueError, match="policy is features"):
                writer.add_subject_latents([subject_key(1)], ["a"], torch.zeros(1, 4, 8, 8))
            with pytest.raises(ValueError, match="is to be stored"):
                writer.add_targets([picture_key(1)], torch.zeros(1, 4, 9, 9), torch.zeros(1, 4, 9, 9))
            writer.add_subjects([subject_key(1)], ["a"], random_features(1))
            with pytest.raises(ValueError, match="a second time"):
                writer.add_subjects([subject_key(1)], ["a"], random_features(1))
            with pytest.raises(ValueError, match="the column text_id is missing"):
                writer.close(pa.table({name: ["x"] for name in ("pair_id", "subject_id", "target_id")}))

    def test_foreground_tokens_need_square_grids(self, tmp_path):
        written = write_features(tmp_path, num_shards=1, tokens="foreground")
        values = written.identity.to_json()
        values["blocks"][0]["num_tokens"] = 60
        with pytest.raises(ConfigurationError, match="60 tokens of block down_blocks"):
            FeatureShardWriter(written.output, type(written.identity).from_json(values), "r0-00005")


class TestDamage:
    def test_any_changed_byte_is_found_and_only_its_shard(self, tmp_path):
        """A byte of every part of every object of a shard."""
        written = write_features(tmp_path)
        store = FeatureStore.open(str(tmp_path))
        assert store.verify() == []
        for file in written.shards["r0-00001"].files:
            path = tmp_path / file.path
            good = path.read_bytes()
            for position in range(0, len(good), max(1, len(good) // 7)):
                path.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
                assert store.verify() == ["r0-00001"], f"byte {position} of {file.path}"
                found = find_done_shards(written.output, written.identity, verify=True)
                assert set(found) == {"r0-00000"}, f"byte {position} of {file.path}"
            path.write_bytes(good)
        assert find_done_shards(written.output, written.identity, verify=True) == written.shards

    def test_a_read_that_checks_finds_the_damaged_row_and_reads_the_others(self, tmp_path):
        written = write_features(tmp_path, num_shards=1)
        path = tmp_path / "subjects" / "r0-00000.parquet"
        data = bytearray(path.read_bytes())
        data[data.index(random_features(2).tokens[BLOCKS[0].name].half().numpy().tobytes()) + 100] ^= 1
        path.write_bytes(data)
        store = FeatureStore.open(written.output.root_uri, check=True)
        store.read_subject(subject_key(1))
        with pytest.raises(
            ConfigurationError, match=r"r0-00000\.parquet is damaged: the checksum of row group 2 differs"
        ):
            store.read_subject(subject_key(2))

    @pytest.mark.parametrize("row_group_mib", [0, 1])
    def test_a_file_that_was_cut_off_is_named_without_checksums_too(self, tmp_path, row_group_mib):
        written = write_features(tmp_path, row_group_mib=row_group_mib)
        path = tmp_path / "subjects" / "r0-00001.parquet"
        path.write_bytes(path.read_bytes()[:-1000])
        store = FeatureStore.open(written.output.root_uri, check=False)
        store.read_subject(subject_key(0))
        with pytest.raises(ConfigurationError, match=r"r0-00001\.parquet is damaged: .*verify"):
            store.read_subject(subject_key(5))
        assert set(find_done_shards(written.output, written.identity)) == {"r0-00000"}

    def test_a_missing_file_is_named(self, tmp_path):
        written = write_features(tmp_path)
        (tmp_path / "subjects" / "r0-00001.parquet").unlink()
        store = FeatureStore.open(written.output.root_uri)
        with pytest.raises(ConfigurationError, match="it is missing"):
            store.read_subject(subject_key(5))
        assert store.verify() == ["r0-00001"]

    def test_a_writer_that_fails_stores_nothing_and_leaves_nothing(self, tmp_path):
        written = write_features(tmp_path, num_shards=1)
        before = sorted(path for path in tmp_path.rglob("*"))

        def fail() -> None:
            with FeatureShardWriter(written.output, written.identity, "r0-00007") as writer:
                writer.add_subjects([subject_key(1)], ["a"], random_features(1))
                raise RuntimeError("the picture is damaged")

        with pytest.raises(RuntimeError, match="picture"):
            fail()
        assert sorted(path for path in tmp_path.rglob("*")) == before

    def test_a_shard_of_another_identity_is_not_done(self, tmp_path):
        written = write_features(tmp_path)
        assert find_done_shards(written.output, identity_of(t_sub=2)) == {}
        assert find_done_shards(written.output, written.identity) == written.shards

    def test_the_same_rows_make_the_same_bytes(self, tmp_path):
        first = write_features(tmp_path / "one", tokens="foreground", dtype="fp8")
        second = write_features(tmp_path / "two", tokens="foreground", dtype="fp8")
        assert first.shards == second.shards
        assert (tmp_path / "one" / "manifest.json").read_bytes() == (tmp_path / "two" / "manifest.json").read_bytes()

    def test_an_empty_store_and_an_empty_shard_are_stores(self, tmp_path):
        write_features(tmp_path / "none", num_shards=0)
        assert len(FeatureStore.open(str(tmp_path / "none"))) == 0
        write_features(tmp_path / "empty", num_shards=1, per_shard=0)
        store = FeatureStore.open(str(tmp_path / "empty"))
        assert (len(store), list(store.iterate()), store.verify()) == (0, [], [])

    def test_a_subject_in_two_shards_counts_once(self, tmp_path):
        written = write_features(tmp_path, num_shards=1)
        from tasks.features import write_index
        from tests.features.stores import write_shard

        again = write_shard(written.output, written.identity, "r0-00001", range(3, 8))
        write_index(written.output, written.identity, {**written.shards, "r0-00001": again})
        store = FeatureStore.open(str(tmp_path))
        assert len(store) == 8
        assert [len(batch.ids) for batch in store.iterate()] == [5, 3]


class TestProcesses:
    def test_a_store_travels_to_another_process(self, tmp_path):
        write_features(tmp_path)
        store = FeatureStore.open(str(tmp_path))
        store.read_subject(subject_key(1))
        copy = pickle.loads(pickle.dumps(store))
        assert len(pickle.dumps(store)) < 20_000
        name = BLOCKS[0].name
        assert torch.equal(copy.read_subject(subject_key(2)).tokens[name], random_features(2).tokens[name].half())

    def test_threads_read_at_once(self, tmp_path):
        write_features(tmp_path)
        store = FeatureStore.open(str(tmp_path))
        name = BLOCKS[0].name

        def read(number: int) -> bool:
            found = store.read_subject(subject_key(number)).tokens[name]
            return torch.equal(found, random_features(number).tokens[name].half())

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read, list(range(10)) * 10))


class TestBlockPool:
    SIZE = 3 * 2**20

    def test_memory_comes_back_when_the_last_view_of_it_is_gone(self):
        pool = BlockPool()
        block = pool.take(self.SIZE)
        address = block.data_ptr()
        view = block[100:200].view(torch.float16).view(5, 10)
        del block
        assert pool.take(self.SIZE).data_ptr() != address
        del view
        assert pool.take(self.SIZE).data_ptr() == address

    def test_blocks_are_aligned_and_as_long_as_asked_for(self):
        pool = BlockPool()
        for size in (0, 1, 1000, 2**20, 2**20 + 1, self.SIZE):
            block = pool.take(size)
            assert (len(block), block.data_ptr() % 64) == (size, 0)

    def test_two_threads_never_share_a_block(self):
        pool, trouble = BlockPool(), []

        def work(value: int) -> None:
            for _ in range(200):
                block = pool.take(self.SIZE)
                block[:64] = value
                if (block[:64] != value).any():
                    trouble.append(value)

        threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not trouble


class TestRealShapes:
    def test_subjects_of_sd21_are_23_mb_and_come_back(self, tmp_path):
        written_identity = identity_of(SD21)
        from tasks.features import write_index
        from tasks.storage import OutputFolder

        output = OutputFolder(str(tmp_path))
        write_store(output, written_identity)
        with FeatureShardWriter(output, written_identity, "r0-00000") as writer:
            for number in range(3):
                features = random_features(number, SD21_BLOCKS).to("cpu", torch.float16)
                writer.add_subjects([subject_key(number)], ["cup"], features)
            shard = writer.close(pa.table({name: ["x"] for name in ("pair_id", "subject_id", "target_id", "text_id")}))
        write_index(output, written_identity, {"r0-00000": shard})
        size = (tmp_path / "subjects" / "r0-00000.parquet").stat().st_size
        assert size / 3 == pytest.approx(23.1e6, rel=0.002)
        store = FeatureStore.open(str(tmp_path), check=True)
        for number in (2, 0, 1):
            features = store.read_subject(subject_key(number))
            expected = PackedFeatures.of(random_features(number, SD21_BLOCKS), "fp16")
            assert features.num_values == 11_550_720
            assert all(torch.equal(features.tokens[name], expected.values[name]) for name in expected.values)
            assert all(tokens.data_ptr() % 64 == 0 for tokens in features.tokens.values())
