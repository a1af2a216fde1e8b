"""Is it good: bits per byte of every mixture of experts on every text."""

from moiety.evaluate.attribution import attribute
from moiety.evaluate.matrix import Question, evaluate, model_names
from moiety.evaluate.report import Evaluation, to_json_line, write_report
from moiety.evaluate.tables import render_table

__all__ = [
    "Evaluation",
    "Question",
    "attribute",
    "evaluate",
    "model_names",
    "render_table",
    "to_json_line",
    "write_report",
]
