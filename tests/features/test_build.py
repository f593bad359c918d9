"""One shard after the other, without Ray: what is stored is what the networks say, whatever the division."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ezigen.config import ConfigurationError
from ezigen.models import encode_pictures, encode_prompts, load_stack, to_pixels
from ezigen.pairs import Box, cut_target
from ezigen.subject import SubjectEncoder
from tasks.features.identity import picture_id, subject_id, text_id
from tasks.features.pair_reader import ReferenceLost
from tasks.features.pairs_set import DamagedPairs
from tasks.features.read_ahead import read_ahead
from tasks.features.streamed_file import remove_abandoned
from tests.features.pairs_files import by_reference, make_mask, make_picture, make_row, to_png, write_pairs
from tests.features.stage import Stage
from tests.tiny import build_tiny_stack

BATCH = 3
ROWS = [
    make_row(index, subject=f"s{index % 9}", subject_class="cup", target=f"t{index % 5}", caption=f"a cup {index % 7}")
    for index in range(11)
]


@pytest.fixture(scope="module")
def stage(tmp_path_factory, tiny_folder) -> Stage:
    """The store of ROWS, made in shards of 4."""
    folder = tmp_path_factory.mktemp("build")
    write_pairs(str(folder / "pairs"), ROWS)
    made = Stage(folder / "pairs", folder / "store", tiny_folder, batch_size=BATCH)
    made.make_here()
    return made


def pixels_of(row, column="subject") -> torch.Tensor:
    return to_pixels(Image.open(BytesIO(row[column])))


def subject_id_of(row) -> str:
    return subject_id(row["subject_sha256"], row["subject_class"])


# ---- what is stored


def test_subjects_are_what_the_encoder_says(stage, tiny_stack):
    store, encoder = stage.open(), SubjectEncoder(tiny_stack)
    assert len(store) == 9
    for row in ROWS[:9]:
        filled = pixels_of(row).expand(BATCH, -1, -1, -1)
        wanted = encoder.encode(filled, ["cup"] * BATCH, t_sub=1).select(0).to("cpu", torch.float16)
        alone = encoder.encode(pixels_of(row)[None], ["cup"], t_sub=1)
        found = store.read_subject(subject_id_of(row))
        assert found.tokens.keys() == wanted.tokens.keys()
        for name, tokens in found.tokens.items():
            assert torch.equal(tokens, wanted.tokens[name])
            torch.testing.assert_close(tokens.float(), alone.tokens[name], atol=2e-3, rtol=2e-3)


@torch.no_grad()
def test_targets_are_the_posterior_of_the_vae(stage, tiny_stack):
    store = stage.open()
    factor = tiny_stack.vae.config.scaling_factor
    for row in ROWS[:5]:
        posterior = tiny_stack.vae.encode(pixels_of(row, "target")[None]).latent_dist
        found = store.read_target(picture_id(row["target_sha256"]))
        torch.testing.assert_close(found.mean, posterior.mean[0] * factor, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(found.variance, posterior.var[0] * factor**2, atol=0, rtol=2**-8)


def test_texts_are_token_ids_and_embeddings(stage, tiny_stack):
    store = stage.open()
    for row in ROWS[:7]:
        found = store.read_text(text_id(row["caption"]))
        options = {"padding": "max_length", "truncation": True, "max_length": found.token_ids.shape[0]}
        assert found.text == row["caption"]
        assert found.token_ids.tolist() == tiny_stack.tokenizer(row["caption"], **options).input_ids
        wanted = encode_prompts(tiny_stack, [row["caption"]]).tokens[0]
        torch.testing.assert_close(found.embeddings.float(), wanted, atol=2e-3, rtol=2e-3)


def test_every_pair_finds_what_it_needs(stage):
    store = stage.open()
    found = [row for batch in store.samples() for row in batch.to_pylist()]
    assert [row["pair_id"] for row in found] == [row["pair_id"] for row in ROWS]
    for sample, row in zip(found, ROWS, strict=True):
        assert sample["subject_id"] == subject_id_of(row)
        assert sample["target_id"] == picture_id(row["target_sha256"])
        assert sample["text_id"] == text_id(row["caption"])
        assert sample["source"] == "coco"
        store.read_subject(sample["subject_id"])
        store.read_target(sample["target_id"])
        store.read_text(sample["text_id"])


def test_what_several_shards_need_is_stored_by_the_first(stage):
    stored = {
        table: [pq.read_table(path).column(0).to_pylist() for path in sorted(Path(stage.output.path(table)).iterdir())]
        for table in ("subjects", "latents", "texts")
    }
    assert [len(ids) for ids in stored["subjects"]] == [4, 4, 1]
    assert [len(ids) for ids in stored["latents"]] == [4, 1, 0]
    assert [len(ids) for ids in stored["texts"]] == [4, 3, 0]
    for shards in stored.values():
        ids = [one for shard in shards for one in shard]
        assert len(set(ids)) == len(ids)


# ---- the same whatever the division


def rows_by_id(stage: Stage) -> dict[str, dict]:
    """Every stored row of every table by its id, as bytes."""
    rows = {}
    for table in ("subjects", "latents", "texts"):
        for path in Path(stage.output.path(table)).iterdir():
            rows |= {next(iter(row.values())): row for row in pq.read_table(path).to_pylist()}
    return rows


@pytest.mark.parametrize(("pairs_per_shard", "rows_per_group", "backwards"), [(11, 11, False), (2, 1, True)])
def test_bytes_depend_neither_on_shards_nor_on_mates(
    stage, tmp_path, tiny_folder, pairs_per_shard, rows_per_group, backwards
):
    rows = ROWS[::-1] if backwards else ROWS
    write_pairs(str(tmp_path / "p"), rows, pairs_per_shard=pairs_per_shard, rows_per_group=rows_per_group)
    other = Stage(tmp_path / "p", tmp_path / "store", tiny_folder, batch_size=BATCH)
    other.make_here()
    assert rows_by_id(other) == rows_by_id(stage)


def test_making_a_shard_again_stores_the_same_bytes(stage):
    def contents() -> dict[str, bytes]:
        root = Path(stage.output.path(""))
        return {str(path): path.read_bytes() for path in sorted(root.glob("*/r0-00001.parquet"))}

    before = contents()
    assert len(before) == 5
    stage.work(stage.plan()).make("r0-00001")
    assert contents() == before


# ---- what else can be asked for


def test_latents_alone(tmp_path, tiny_folder, tiny_stack):
    write_pairs(str(tmp_path / "pairs"), ROWS[:3])
    stage = Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder, policy="latents", text_embeddings=False)
    store = stage.make_here()
    for row in ROWS[:3]:
        wanted = encode_pictures(tiny_stack, pixels_of(row)[None])[0]
        torch.testing.assert_close(store.read_subject_latent(subject_id_of(row)).float(), wanted, atol=1e-3, rtol=1e-3)
        assert store.read_text(text_id(row["caption"])).embeddings is None


def test_foreground_tokens_are_those_under_the_mask(stage, tmp_path, tiny_folder):
    write_pairs(str(tmp_path / "pairs"), ROWS[:3])
    store = Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder, tokens="foreground").make_here()
    whole = stage.open()
    for key, row in enumerate(ROWS[:3]):
        touched = torch.nn.functional.max_pool2d(to_pixels(make_mask(f"s{key}"))[None, :1], 4)[0, 0] > 0
        found, all_tokens = store.read_subject(subject_id_of(row)), whole.read_subject(subject_id_of(row))
        finest = [name for name, tokens in all_tokens.tokens.items() if tokens.shape[1] == 64]
        assert finest
        assert 0 < touched.sum() < 64
        for name in finest:
            assert torch.equal(found.tokens[name][0], all_tokens.tokens[name][0, touched.flatten()])


def test_other_t_sub_and_precision(stage, tmp_path, tiny_folder, tiny_stack):
    write_pairs(str(tmp_path / "pairs"), ROWS[:1])
    store = Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder, t_sub=300, dtype="bf16").make_here()
    wanted = SubjectEncoder(tiny_stack).encode(pixels_of(ROWS[0]).expand(BATCH, -1, -1, -1), ["cup"] * BATCH, t_sub=300)
    found = store.read_subject(subject_id_of(ROWS[0]))
    for name, tokens in found.tokens.items():
        assert torch.equal(tokens[0], wanted.tokens[name][0].bfloat16())


def test_the_networks_have_the_precision_that_the_identity_names(stage, tmp_path, tiny_folder):
    """Also where "auto" would choose another one, as on a worker of another kind."""
    write_pairs(str(tmp_path / "pairs"), ROWS[:1])
    half = Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder)
    plan = half.plan()
    identity = dataclasses.replace(plan.identity, network_dtype="bf16")
    store = half.make_here(dataclasses.replace(plan, identity=identity))
    encoder = SubjectEncoder(load_stack(str(tiny_folder), device="cpu", dtype="bf16"))
    wanted = encoder.encode(pixels_of(ROWS[0]).expand(BATCH, -1, -1, -1), ["cup"] * BATCH, t_sub=1)
    whole = stage.open().read_subject(subject_id_of(ROWS[0]))
    found = store.read_subject(subject_id_of(ROWS[0]))
    for name, tokens in found.tokens.items():
        assert torch.equal(tokens[0], wanted.tokens[name][0].half())
        assert not torch.equal(tokens[0], whole.tokens[name][0])


def test_targets_by_reference_are_cut_as_stored_ones_are(tmp_path, tiny_folder, tiny_stack):
    scene = make_picture("scene", 80)
    scene.save(tmp_path / "scene.png")
    crop = [10.0, 0.0, 60.0, 60.0]
    stored = make_row(1, target_sha256=None)
    stored["target"] = to_png(cut_target(scene, Box(*crop), 32))
    write_pairs(str(tmp_path / "pairs"), [by_reference(make_row(0), str(tmp_path / "scene.png"), crop)])
    store = Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder).make_here()
    (sample,) = next(iter(store.samples())).to_pylist()
    wanted = encode_pictures(tiny_stack, pixels_of(stored, "target")[None])[0]
    torch.testing.assert_close(store.read_target(sample["target_id"]).mean, wanted, atol=1e-3, rtol=1e-3)

    make_picture("another scene", 80).save(tmp_path / "scene.png")
    replaced = Stage(tmp_path / "pairs", tmp_path / "replaced", tiny_folder)
    with pytest.raises(ReferenceLost, match=r"coco/train/000000/1.*scene\.png, which is another picture now"):
        replaced.make_here()
    assert not list((tmp_path / "replaced").glob("*/*.parquet"))

    (tmp_path / "scene.png").unlink()
    other = Stage(tmp_path / "pairs", tmp_path / "other", tiny_folder)
    with pytest.raises(ReferenceLost, match=r"coco/train/000000/1.*scene\.png.*targets=embed"):
        other.make_here()


def test_a_shard_without_pairs(tmp_path, tiny_folder):
    """As build_pairs leaves it where everything was refused."""
    pairs = write_pairs(str(tmp_path / "pairs"), ROWS[:2], pairs_per_shard=2)
    append_empty_shard(pairs)
    store = Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder).make_here()
    assert len(store) == 2
    assert sum(len(batch) for batch in store.samples()) == 2
    assert store.verify() == []


def append_empty_shard(pairs) -> None:
    from tasks.pairs.layout import pairs_path, to_parquet
    from tasks.pairs.manifest import PairsManifest
    from tasks.pairs.schema import PAIRS_SCHEMA
    from tasks.sharding import ShardReport, store_file

    data = to_parquet([PAIRS_SCHEMA.empty_table()], PAIRS_SCHEMA, {})
    report = ShardReport("r1-00000", 0, files=(store_file(pairs, pairs_path("r1-00000"), data, 0),))
    PairsManifest("test", (*PairsManifest.load(pairs).reports, report)).store(pairs)


def test_the_embedded_model(tmp_path):
    rows = [make_row(index, size_px=64) for index in range(2)]
    write_pairs(str(tmp_path / "pairs"), rows)
    store = Stage(tmp_path / "pairs", tmp_path / "store", "mini", batch_size=2).make_here()
    encoder = SubjectEncoder(load_stack("mini", device="cpu"))
    wanted = encoder.encode(torch.stack([pixels_of(row) for row in rows]), [row["subject_class"] for row in rows])
    for index, row in enumerate(rows):
        found = store.read_subject(subject_id_of(row))
        for name, tokens in found.tokens.items():
            assert torch.equal(tokens[0], wanted.tokens[name][index].half())


# ---- what is wrong


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"subject_sha256": "0" * 64}, "the subject of pair coco/train/000001/1 has another checksum"),
        ({"target_sha256": "0" * 64}, "the target of pair coco/train/000001/1 has another checksum"),
        ({"target": None}, "the target of pair coco/train/000001/1 has another checksum"),
        ({"size_px": 33}, "are 33 px"),
    ],
)
def test_a_picture_that_is_not_the_stored_one(tmp_path, tiny_folder, changes, reason):
    write_pairs(str(tmp_path / "pairs"), [make_row(0), {**make_row(1), **changes}, make_row(2)], pairs_per_shard=2)
    stage = Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder)
    with pytest.raises((DamagedPairs, ConfigurationError), match=reason) as caught:
        stage.make_here()
    assert str(tmp_path / "pairs") in str(caught.value)
    assert not list((tmp_path / "store").glob("*/*.parquet"))
    assert not list((tmp_path / "store").rglob(".partial-*"))


def test_a_picture_of_another_size_than_its_row_says(tmp_path, tiny_folder):
    large = make_row(1, size_px=48)
    write_pairs(str(tmp_path / "pairs"), [{**large, "size_px": 32}])
    with pytest.raises(DamagedPairs, match="48 x 48 px, not 32 px square"):
        Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder).make_here()


def test_a_shard_that_lost_rows_since_the_plan(tmp_path, tiny_folder):
    write_pairs(str(tmp_path / "pairs"), ROWS[:4])
    stage = Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder)
    plan = stage.plan()
    path = tmp_path / "pairs" / "pairs" / "r0-00000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 3), path)
    with pytest.raises(DamagedPairs, match=r"r0-00000.parquet is damaged.*4 pairs"):
        stage.make_here(plan)


def test_a_worker_with_another_model_says_so(stage, tmp_path):
    plan = stage.plan()
    other = Stage(stage.pairs_uri, tmp_path / "store", build_tiny_stack(tmp_path / "other", seed=1))
    work = stage.work(plan)
    work.model = other.model
    with pytest.raises(ConfigurationError, match="another one where the worker runs"):
        work.open()


_BROKEN_DEVICE = """
import sys
from tests.features.stage import Stage
stage = Stage(*sys.argv[1:4])
work = stage.work(stage.plan())
def fail(*_):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
work._encoder._stack.vae.encode = fail
work.make("r0-00000")
"""


def test_a_worker_whose_device_fails_leaves(tmp_path, tiny_folder):
    """Ray replaces a process that is gone; one that stays would fail every further shard."""
    write_pairs(str(tmp_path / "pairs"), ROWS[:2])
    command = [sys.executable, "-c", _BROKEN_DEVICE, *map(str, (tmp_path / "pairs", tmp_path / "store", tiny_folder))]
    ended = subprocess.run(
        command, check=False, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 70, ended.stderr
    assert "illegal memory access" in ended.stderr


_WRITER = """
import time
from tasks.features.streamed_file import StreamedFile
from tasks.storage import OutputFolder
file = StreamedFile(OutputFolder("memory://store"), "subjects/r0-00000.parquet")
file.write(b"some")
print(file.local_path, flush=True)
time.sleep(600)
"""


def test_what_a_killed_worker_left_beside_a_remote_store_is_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER], stdout=subprocess.PIPE, text=True, env=environment
    ) as writer:
        left = Path(writer.stdout.readline().strip())
        assert left.parent == tmp_path
        assert remove_abandoned(min_age_s=0) == 0  # its writer lives
        writer.kill()
    assert remove_abandoned() == 0  # so young that its writer may not have come to locking it
    assert remove_abandoned(min_age_s=0) == 1
    assert not left.exists()


# ---- reading ahead


def test_reading_ahead_keeps_order_and_errors():
    def numbers() -> Iterator[int]:
        yield from range(5)
        raise ValueError("the sixth")

    seen = []
    with pytest.raises(ValueError, match="the sixth"):
        seen.extend(read_ahead(numbers()))
    ahead = read_ahead(numbers())
    assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="the sixth"):
        next(ahead)
    assert list(read_ahead(iter([]))) == []


def test_reading_ahead_is_one_step_ahead_and_ends_when_closed():
    made = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    ahead = read_ahead(numbers())
    assert next(ahead) == 0
    assert next(ahead) == 1
    ahead.close()
    assert made == [0, 1, 2]


def test_rows_are_read_one_group_at_a_time(tmp_path, tiny_folder):
    write_pairs(str(tmp_path / "pairs"), ROWS, pairs_per_shard=11, rows_per_group=2)
    pairs = Stage(tmp_path / "pairs", tmp_path / "store", tiny_folder).plan().pairs
    batches = list(pairs.read_rows("r0-00000", ["pair_id", "subject"]))
    assert max(len(batch) for batch in batches) <= 2
    assert pa.Table.from_batches(batches).column("pair_id").to_pylist() == [row["pair_id"] for row in ROWS]
