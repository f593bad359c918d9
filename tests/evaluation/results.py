"""Result rows for outputs that no run made."""

from datetime import UTC, datetime

from tasks.catalog.results import ResultRow
from tasks.storage.output import StoredImage


def done_row(item_id: str, item_key: str, image: StoredImage) -> ResultRow:
    return ResultRow(
        item_key=item_key,
        item_id=item_id,
        row_index=0,
        run_id="20260101T000000Z-abcdef",
        status="done",
        attempts=1,
        finished_at=datetime(2026, 1, 1, tzinfo=UTC),
        image_uri=image.uri,
        image_sha256=image.sha256,
        image_bytes=image.num_bytes,
    )
