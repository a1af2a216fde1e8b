"""Whatever an audit warns of or fails by has a row in the owner's guide that says what to do."""

from __future__ import annotations

import pytest
from tests.docs.pages import DOCS, rows, sections

from moiety.audit.words import MEASURE_WORDS

ROWS = {
    "extraction": ("too few were tried", "not measured", "a measure is stricter"),
    "longest-run": ("not measured", "a measure is stricter"),
    "membership": ("too few were tried", "not measured", "a measure is stricter"),
    "membership-tail": ("too few were tried", "not measured", "a measure is stricter"),
    "exposure": ("too few were tried", "not measured", "a measure is stricter"),
    "epsilon": ("too few were tried", "not measured", "a measure is stricter"),
    "promise": ("the promise is false", "the promise bounds practically nothing"),
    "canaries": ("nobody looked for canaries", "the promise bounds practically nothing"),
    "control": ("the control gets back under half", "no model was overfitted on purpose"),
}
"""By measure the rows that speak of its warnings and failures."""


@pytest.mark.parametrize("measure", MEASURE_WORDS)
def test_a_measure_that_does_not_pass_has_a_remedy(measure: str) -> None:
    section = sections(DOCS / "guides/owner.md")["4. See what your expert gives away"]
    told = {row[0]: row[1] for row in rows(section) if len(row) == 2}
    for said in ROWS[measure]:
        assert [remedy for cell, remedy in told.items() if cell.startswith(said)], said
