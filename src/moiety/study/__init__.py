"""Whole comparisons of ways to merge: planned in a file, carried out piece by piece, told."""

from moiety.study.findings import report_on
from moiety.study.pages import render_tables, write_report
from moiety.study.paper import StudyReport
from moiety.study.places import Study
from moiety.study.plan import read_plan
from moiety.study.run import carry_out

__all__ = [
    "Study",
    "StudyReport",
    "carry_out",
    "read_plan",
    "render_tables",
    "report_on",
    "write_report",
]
