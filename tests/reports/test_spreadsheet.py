import csv
import io

import pytest

from tasks.reports.spreadsheet import write_csv


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\n=1", "=cmd|' /C calc'!A0", "\uff1d1"])
def test_a_text_is_no_formula(text):
    stream = io.StringIO(newline="")
    write_csv(stream, [["a", text], [None, -1.5]])
    assert list(csv.reader(io.StringIO(stream.getvalue(), newline=""))) == [["a", f"'{text}"], ["", "-1.5"]]


def test_a_text_stays_in_its_cell():
    stream = io.StringIO(newline="")
    write_csv(stream, [["on a\r\nbeach\r=1+1", 'a "red", cup']])
    assert list(csv.reader(io.StringIO(stream.getvalue(), newline=""))) == [["on a\nbeach\n=1+1", 'a "red", cup']]
