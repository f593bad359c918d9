import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.catalog.rows import RunFingerprint

FINGERPRINT = RunFingerprint(sampler="s", model="m", adapter="a")


def good_row(n=0, **fields):
    return {
        "item_id": f"item {n}",
        "subject_uri": f"p/{n}.png",
        "subject_class": "mug",
        "prompt": "on a beach",
        **fields,
    }


@pytest.fixture
def write_catalog(tmp_path):
    """Rows (dicts) as a file in the format of its suffix; None is an absent value."""

    def write(rows, name="catalog.jsonl"):
        path = tmp_path / name
        columns = list(dict.fromkeys(column for row in rows for column in row))
        if path.suffix == ".parquet":
            pq.write_table(pa.table({c: [row.get(c) for row in rows] for c in columns}), path)
        elif path.suffix == ".csv":
            import csv

            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows([[_cell(row.get(c)) for c in columns] for row in rows])
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def _cell(value):
        return json.dumps(value) if isinstance(value, list) else value

    return write
