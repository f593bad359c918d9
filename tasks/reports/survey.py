"""One pass over an output's rows: its figures and the choice of the items that a page shows."""

from dataclasses import dataclass, field

import pyarrow as pa

from tasks.reports.figures import Figures, RunFigures, figure_columns
from tasks.reports.selection import PageLimits, Selection, selection_columns
from tasks.storage.run_record import RunRecord


@dataclass
class Survey:
    """What is known of all rows, each seen once."""

    limits: PageLimits = field(default_factory=PageLimits)
    figures: Figures = field(default_factory=Figures)

    def __post_init__(self) -> None:
        self.selection = Selection(self.limits)

    def add(self, batch: pa.RecordBatch) -> None:
        """Take resolved rows into account."""
        if batch.num_rows:
            self.figures.add(batch)
            self.selection.add(batch)

    def latest_run(self, record: RunRecord | None) -> RunFigures | None:
        """The run of run.json if it made any row, else the last one that did; None without rows."""
        runs = self.figures.runs
        if record is not None and record.run_id in runs:
            return runs[record.run_id]
        return max(runs.values(), key=lambda run: run.last_at, default=None)


def survey_columns() -> list[str]:
    """The columns that `Survey.add` reads."""
    return sorted({*figure_columns(), *selection_columns()})
