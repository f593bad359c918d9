"""What a run made, for people: one page complete in itself, a contact sheet, a few lines for a flow's page."""

from tasks.reports.contact_sheet import SheetLayout, contact_sheet, summary_markdown
from tasks.reports.figures import Figures
from tasks.reports.report import read_figures, read_pictured_rows, write_report
from tasks.reports.selection import PageLimits

__all__ = [
    "Figures",
    "PageLimits",
    "SheetLayout",
    "contact_sheet",
    "read_figures",
    "read_pictured_rows",
    "summary_markdown",
    "write_report",
]
