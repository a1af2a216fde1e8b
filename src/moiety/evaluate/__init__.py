"""Is it good: bits per byte of every mixture of experts on every text.

The door is five modules and three names:

- ``bootstrap``   intervals from documents drawn again
- ``report``      ``Evaluation`` as a paper, one JSON line, ``write_report``
- ``tables``      an evaluation on the terminal
- ``figures``     the pieces that charts are drawn with
- ``pages``       one HTML page with everything in it, and how numbers are written
- ``Question``, ``evaluate``, ``attribute``
"""

from moiety.evaluate import bootstrap, figures, pages, report, tables
from moiety.evaluate.attribution import attribute
from moiety.evaluate.matrix import Question, evaluate

__all__ = [
    "Question",
    "attribute",
    "bootstrap",
    "evaluate",
    "figures",
    "pages",
    "report",
    "tables",
]
