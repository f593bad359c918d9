"""A feature store, and the features of one subject of it as pictures."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ezigen.config import ConfigurationError
from tasks.inspection.components import draw_components
from tasks.inspection.near import find_id
from tasks.inspection.pairs_set import Row, find_pair, subject_picture
from tasks.inspection.run_facts import run_facts
from tasks.inspection.sheet import Cell, draw_sheet, enlarge, to_jpeg, to_png
from tasks.inspection.view import SavedPicture, Table, View, schema_table
from tasks.storage import OutputFolder

if TYPE_CHECKING:
    from tasks.features.identity import FeatureIdentity
    from tasks.features.reader import FeatureStore, SubjectBatch

SHEET_SUBJECTS, SHEET_BLOCKS = 6, 6
PANEL_PX = 144

Samples = dict[str, tuple[str, str]]
"""subject_id -> (shard, pair_id) of one pair with it."""


def inspect_store(output: OutputFolder) -> View:
    """What the store was made with, rows and bytes by table, the blocks, the schema, and some subjects' features."""
    from tasks.features.manifest import read_manifest, read_store

    identity = read_store(output)
    if identity is None:
        raise ConfigurationError(
            f"{output.root_uri}: store.json is missing, nothing has been computed here; run `ezigen features` again."
        )
    manifest = read_manifest(output)
    facts = [
        ("kind", "feature store"),
        ("location", output.root_uri),
        ("state", "unfinished; `ezigen features` goes on" if manifest is None else "finished"),
        *_identity_facts(identity),
        *run_facts(output.read_run()),
    ]
    tables = [_block_table(identity)] if identity.blocks else []
    if manifest is None:
        return View(f"feature store at {output.root_uri}", tuple(dict(facts).items()), tuple(tables))
    _, shards, index = manifest
    rows, sizes = Counter[str](), Counter[str]()
    for file in (*(file for shard in shards for file in shard.files), index):
        table = file.path.partition("/")[0].removesuffix(".parquet")
        rows[table] += 0 if file.path.startswith("index/") else file.rows  # index.parquet has them all once more
        sizes[table] += file.num_bytes
    listed = tuple((name, f"{rows[name]:,}", f"{size:,}") for name, size in sizes.items())
    tables.insert(0, Table("tables", ("table", "rows", "bytes"), listed))
    facts.insert(3, ("shards", f"{len(shards):,}"))
    tables.append(_subject_schema(identity))
    sheet = draw_subjects(output)
    pictures = () if sheet is None else (SavedPicture("contact-sheet.jpg", to_jpeg(sheet, quality=92)),)
    return View(f"feature store at {output.root_uri}", tuple(dict(facts).items()), tuple(tables), pictures)


def inspect_subject(output: OutputFolder, wanted: str) -> View:
    """One subject, by its id or by that of a pair with it: one picture per block, beside the subject's own."""
    store = _open(output)
    subject_id = _find_subject(store, output, wanted)
    shard, pair_id = find_samples(output, store, {subject_id}).get(subject_id, ("", ""))
    row = _pair_row(output, shard, pair_id)
    batch = None if store.identity.policy == "latents" else store.read_subjects([subject_id])
    panels = list(_panels(store, subject_id, batch))
    subject_class = batch.subject_classes[0] if batch else (row or {}).get("subject_class", "unknown")
    facts = [
        ("subject_id", subject_id),
        ("subject class", subject_class),
        ("stored in shard", shard),
        ("one of its pairs", pair_id),
    ]
    if batch is not None:
        facts.append(("numbers", f"{batch.features.num_values:,}"))
    cells = [Cell((picture,), (name, note)) for name, note, picture in panels]
    if row is not None:
        cells.insert(0, Cell((subject_picture(row),), ("subject", row["subject_class"])))
    rows = tuple((name, note) for name, note, _ in panels)
    sheet = draw_sheet(cells, picture_px=PANEL_PX, num_columns=6, title=f"features of subject {subject_id}")
    return View(
        f"subject {subject_id}",
        tuple(facts),
        (Table("blocks", ("block", "tokens"), rows),),
        (SavedPicture(f"subject-{subject_id}.png", to_png(sheet)),),
    )


def draw_subjects(output: OutputFolder, num_subjects: int = SHEET_SUBJECTS) -> Image.Image | None:
    """Some subjects of a finished store, each with its picture and the components of some blocks; None without any."""
    store = _open(output)
    ids = store.subject_ids()
    chosen = [ids[(2 * k + 1) * len(ids) // (2 * num_subjects)] for k in range(min(num_subjects, len(ids)))]
    samples = find_samples(output, store, set(chosen))
    names = _overview(store.identity)
    cells = []
    for subject_id in dict.fromkeys(chosen):
        row = _pair_row(output, *samples.get(subject_id, ("", "")))
        batch = None if store.identity.policy == "latents" else store.read_subjects([subject_id])
        panels = [picture for _, _, picture in _panels(store, subject_id, batch, names)]
        pictures = ([] if row is None else [subject_picture(row)]) + panels
        name = batch.subject_classes[0] if batch else (row or {}).get("subject_class", "")
        cells.append(Cell(tuple(pictures), (f"{name}  {subject_id}",)))
    said = ", ".join(map(short_name, names)) or "its latent"
    title = f"subject, then the first three components of {said}"
    return draw_sheet(cells, picture_px=PANEL_PX, num_columns=1, title=title) if cells else None


def find_samples(output: OutputFolder, store: "FeatureStore", subject_ids: set[str]) -> Samples:
    """For each of the subjects one pair that it is in; reads the samples shard by shard, until all are found."""
    from tasks.features.manifest import read_manifest

    manifest = read_manifest(output)
    found: Samples = {}
    for shard in () if manifest is None else manifest[1]:
        for batch in store.samples([shard.name]):
            wanted = batch.filter(
                pc.is_in(batch.column("subject_id"), pa.array(sorted(subject_ids - found.keys()), pa.string()))
            )
            columns = (wanted.column(name).to_pylist() for name in ("subject_id", "pair_id"))
            for subject_id, pair_id in zip(*columns, strict=True):
                found.setdefault(subject_id, (shard.name, pair_id))
        if len(found) == len(subject_ids):
            break
    return found


def _open(output: OutputFolder) -> "FeatureStore":
    from tasks.features.manifest import read_store
    from tasks.features.reader import FeatureStore

    # What another version of this package made is shown too.
    return FeatureStore.open(output.root_uri, output.locations, expect=read_store(output))


def _find_subject(store: "FeatureStore", output: OutputFolder, wanted: str) -> str:
    """The subject that an id, or the id of a pair, means."""
    if "/" not in wanted:
        return find_id(wanted, store.subject_ids(), "subject", output.root_uri)
    subject_of: dict[str, str] = {}

    def pair_ids() -> Iterator[str]:
        for batch in store.samples():
            columns = (batch.column(name).to_pylist() for name in ("pair_id", "subject_id"))
            for pair_id, subject_id in zip(*columns, strict=True):
                if pair_id.startswith(wanted):
                    subject_of[pair_id] = subject_id
                yield pair_id

    return subject_of[find_id(wanted, pair_ids(), "pair", output.root_uri)]


def _panels(
    store: "FeatureStore", subject_id: str, batch: "SubjectBatch | None", names: Sequence[str] | None = None
) -> Iterator[tuple[str, str, Image.Image]]:
    """Short name, shape and picture of blocks (all unless named) in the order of execution, or of a stored latent."""
    if batch is None:
        latent = store.read_subject_latent(subject_id).float().numpy()
        channels, height, width = latent.shape
        picture = draw_components(latent.reshape(channels, -1).T)
        yield "latent", f"{height}x{width}, {channels} channels", enlarge(picture, PANEL_PX, cells=True)
        return
    for name in sorted(batch.features.tokens, key=_execution_order) if names is None else names:
        tokens = batch.features.tokens[name][0]
        if batch.features.mask is not None:
            tokens = tokens[batch.features.mask[name][0]]
        kept: npt.NDArray[np.bool_] | None = None if batch.kept is None else batch.kept[name][0].numpy()
        side = round((len(tokens) if kept is None else len(kept)) ** 0.5)
        stored = "" if kept is None else f", {len(tokens)} stored"
        picture = enlarge(draw_components(tokens.float().numpy(), kept), PANEL_PX, cells=True)
        yield short_name(name), f"{side}x{side} x {tokens.shape[1]}{stored}", picture


def short_name(block: str) -> str:
    """down_blocks.0.attentions.1.transformer_blocks.0 -> down 0.1"""
    parts = block.replace("_blocks", "").replace("_block", "").split(".")
    words = [part for part in parts if part not in ("attentions", "transformer")]
    if words[0] != "mid" and len(words) > 2:
        return f"{words[0]} {'.'.join(words[1:-1] if words[-1] == '0' else words[1:])}"
    return " ".join(words[:2])


def _execution_order(block: str) -> tuple[int, str]:
    return ("down", "mid", "up").index(block.partition("_")[0]), block


def _overview(identity: "FeatureIdentity") -> list[str]:
    """Names of at most SHEET_BLOCKS blocks over the whole depth; the coarsest grid shows little and is left out."""
    coarsest = min((block.num_tokens for block in identity.blocks), default=0)
    finer = [block.name for block in identity.blocks if block.num_tokens > coarsest]
    names = sorted(finer or [block.name for block in identity.blocks], key=_execution_order)
    if len(names) <= SHEET_BLOCKS:
        return names
    return [names[place] for place in np.linspace(0, len(names) - 1, SHEET_BLOCKS).round().astype(int)]


def _pair_row(output: OutputFolder, shard: str, pair_id: str) -> Row | None:
    """The row of a pair in the set that the store was made of; None where that cannot be reached any more."""
    record = output.read_run()
    pairs_uri = "" if record is None else str(record.inputs.get("pairs_uri", ""))
    if not pairs_uri or not shard:
        return None
    try:
        return find_pair(OutputFolder(pairs_uri, output.locations), pair_id, [f"{shard}.parquet"])
    except (ConfigurationError, OSError):
        return None


def _identity_facts(identity: "FeatureIdentity") -> list[tuple[str, str]]:
    return [
        ("identity", identity.digest()),
        ("fingerprint of model", identity.model_fingerprint),
        ("t_sub", str(identity.t_sub)),
        ("prompt", identity.template),
        ("pictures", f"{identity.size_px} px"),
        ("policy", identity.policy),
        ("computed in", f"{identity.network_dtype}, preprocessing version {identity.preprocessing}"),
        ("stored as", f"{identity.dtype}, tokens {identity.tokens}"),
        ("latents", "x".join(map(str, identity.latent_shape))),
        ("texts", f"{identity.text_shape[0]} tokens" + _embedding_note(identity)),
    ]


def _embedding_note(identity: "FeatureIdentity") -> str:
    return f", embeddings of {identity.text_shape[1]} channels" if identity.text_embeddings else ", no embeddings"


def _block_table(identity: "FeatureIdentity") -> Table:
    rows = tuple((b.name, f"{b.num_tokens:,}", f"{b.num_channels:,}") for b in identity.blocks)
    return Table("blocks", ("block", "tokens", "channels"), rows)


def _subject_schema(identity: "FeatureIdentity") -> Table:
    from tasks.features.schema import SUBJECTS, describe_field, table_schema

    schema = table_schema(SUBJECTS, identity)
    described = {field.name: describe_field(field) for field in schema if field.metadata}
    notes = {
        name: f"{d['dtype']} {'x'.join(map(str, d['shape']))}".replace("-1", "kept") for name, d in described.items()
    }
    return schema_table("columns of subjects", schema, notes)
