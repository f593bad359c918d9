from datetime import UTC, datetime, timedelta

import pytest

from ezigen.config import ErrorCode
from tasks.catalog.results import ResultRow
from tasks.storage import RunOutput

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def output(tmp_path):
    return RunOutput(str(tmp_path / "out"))


@pytest.fixture
def make_row():
    """A result row of item number `n`, finished `second` seconds after the start."""

    def make(n, *, status="done", second=0, attempts=1, run_id="run", **fields):
        failure = {"error_code": ErrorCode.TIMED_OUT, "error_message": "slow"} if status == "failed" else {}
        return ResultRow(
            item_key=f"{n:032x}", item_id=f"item {n}", row_index=n, run_id=run_id, status=status, attempts=attempts,
            finished_at=START + timedelta(seconds=second), **{**failure, **fields},
        )  # fmt: skip

    return make
