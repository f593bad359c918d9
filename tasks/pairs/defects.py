"""refusals/annotations.parquet: what is wrong with the annotations, listed while they are read."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.datasets.defects import Defect
from tasks.pairs.layout import DEFECTS_PATH, IDENTITY, KIND
from tasks.pairs.schema import REFUSALS_SCHEMA
from tasks.sharding import store_file
from tasks.storage.folder import OutputFolder
from tasks.storage.stored_file import StoredFile

MAX_LISTED = 100_000
"""So that a file that is wrong throughout needs no memory; what is beyond is counted in the plan."""

_ROWS_PER_GROUP = 4096


class DefectList:
    """The first 100,000 of them in the order of reading, compressed as they come."""

    def __init__(self, identity: str) -> None:
        self._schema = REFUSALS_SCHEMA.with_metadata({KIND: "refusals", IDENTITY: identity})
        self._sink = io.BytesIO()
        self._writer: Any = None
        self._waiting: list[dict[str, Any]] = []
        self.num_listed = 0

    def add(self, defect: Defect) -> None:
        """One more entry."""
        if self.num_listed == MAX_LISTED:
            return
        self.num_listed += 1
        self._waiting.append(
            {
                "pair_id": defect.entry_id,
                "source": defect.source,
                "group_id": defect.group_id,
                "reason": str(defect.reason),
                "message": defect.message,
                "subject_class": defect.subject_class,
            }
        )
        if len(self._waiting) == _ROWS_PER_GROUP:
            self._write()

    def store(self, output: OutputFolder) -> StoredFile | None:
        """Stores the list, unless it is empty. Nothing can be added afterwards."""
        if not self.num_listed:
            return None
        self._write()
        self._writer.close()
        return store_file(output, DEFECTS_PATH, self._sink.getvalue(), self.num_listed)

    def _write(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd", write_page_checksum=True)
        if self._waiting:
            self._writer.write_table(pa.Table.from_pylist(self._waiting, self._schema))
        self._waiting = []
