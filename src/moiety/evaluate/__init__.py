"""Is it good: bits per byte of every mixture of experts on every text.

The door is four modules and four names:

- ``bootstrap``   intervals from documents drawn again
- ``report``      ``Evaluation`` as a paper, tables, one JSON line, ``write_report``
- ``figures``     the pieces that charts are drawn with
- ``pages``       one HTML page with everything in it, and how numbers are written
- ``Question``, ``evaluate``, ``model_names``, ``attribute``
"""

from moiety.evaluate import bootstrap, figures, pages, report
from moiety.evaluate.attribution import attribute
from moiety.evaluate.matrix import Question, evaluate, model_names

__all__ = [
    "Question",
    "attribute",
    "bootstrap",
    "evaluate",
    "figures",
    "model_names",
    "pages",
    "report",
]
