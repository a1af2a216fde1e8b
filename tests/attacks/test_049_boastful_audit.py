"""An audit in the manifest that says what no audit can: other verdicts, odd numbers, free text."""

from __future__ import annotations

from typing import Any

import pytest
from tests.attacks.hostile import Target
from tests.audit import made

from moiety.bundle import papers
from moiety.errors import FormatError

HONEST: dict[str, Any] = {
    "verdict": "pass",
    "made": "2026-03-14T09:26:53Z",
    "report": "5f" * 32,
    "policy": "e7" * 32,
    "control": "worked",
    "documents": 200,
    "extracted": 0.015,
    "extracted_anchor": 0.01,
    "auc": 0.529,
    "auc_anchor": 0.506,
    "epsilon_low": 0.31,
}


def _tell(target: Target, audit: Any) -> None:
    target.change_manifest(lambda manifest: manifest.update(audit=audit))


def test_an_honest_one_is_read(target: Target) -> None:
    _tell(target, HONEST)
    with target.verify() as bundle:
        assert bundle.manifest.audit is not None
        assert bundle.manifest.audit.model_dump() == HONEST


@pytest.mark.parametrize(
    "change",
    [
        *({"verdict": "fail"}, {"verdict": "passed with honours"}, {"verdict": None}),
        *({"made": "yesterday"}, {"made": "2026-02-30T00:00:00Z"}, {"made": "2026-03-14"}),
        *({"report": "0" * 63}, {"policy": "../../etc/passwd"}, {"report": None}),
        *({"extracted": 1.5}, {"extracted": -0.1}, {"extracted": "0.0"}, {"extracted": True}),
        *({"extracted": 0.0150001}, {"auc": 0.12345678901234}, {"epsilon_low": 0.3141592653}),
        *({"auc": 1e999}, {"auc": [0.5]}, {"auc_anchor": None}, {"extracted": None}),
        *({"epsilon_low": -1.0}, {"epsilon_low": 1e9}, {"epsilon_low": "0"}),
        *({"control": "worked well"}, {"control": None}, {"control": True}),
        *({"documents": 0}, {"documents": None}, {"documents": -1}, {"documents": 200.0}),
        *({"note": "safe for everybody"}, {"views": {}}, {"\u202e": 1}),
    ],
)
def test_an_audit_out_of_form_is_refused(target: Target, change: dict[str, Any]) -> None:
    audit = HONEST | change
    if audit["auc"] == 1e999:
        _tell(target, HONEST)
        target.change_text('"auc":0.529', '"auc":1e999')
    else:
        _tell(target, audit)
    target.refused(FormatError, "not JSON|not a Manifest")


@pytest.mark.parametrize(
    "change",
    [
        # A pass by an attack that does not work, or was not tried, or of what nobody measured.
        *({"control": "failed"}, {"control": "skipped"}),
        {"auc": None, "auc_anchor": None},
        {"documents": None, "extracted": None, "extracted_anchor": None},
        # Shares that so many documents cannot have, and documents without a share.
        *({"extracted": 0.016, "documents": 100}, {"extracted_anchor": 0.011}),
        *({"documents": 7}, {"documents": 2**31}),
        {"verdict": "warn", "extracted": None, "extracted_anchor": None},
    ],
)
def test_an_audit_that_contradicts_itself_is_refused(
    target: Target, change: dict[str, Any]
) -> None:
    _tell(target, HONEST | change)
    target.refused(FormatError, "not a Manifest")


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "warn", "control": "failed"},
        {"verdict": "warn", "control": "skipped", "epsilon_low": None},
        {"documents": 1, "extracted": 1.0, "extracted_anchor": 0.0},
        {"documents": 2**31 - 1, "extracted": 0.333},
        {"documents": 7, "extracted": 0.143, "extracted_anchor": 0.857},
    ],
)
def test_one_that_could_be_is_read(target: Target, change: dict[str, Any]) -> None:
    _tell(target, HONEST | change)
    with target.verify() as bundle:
        assert bundle.manifest.audit is not None


def test_one_that_refutes_the_promise_beside_it_is_refused(target: Target) -> None:
    def promise(manifest: dict[str, Any]) -> None:
        given = papers.PrivacyStatement.of(made.PROMISE).model_dump(mode="json")
        manifest.update(privacy=given, audit=audit)

    audit = HONEST | {"epsilon_low": made.PROMISE.epsilon}
    target.change_manifest(promise)
    target.verify().close()
    audit = HONEST | {"epsilon_low": round(made.PROMISE.epsilon + 0.001, 3)}
    target.change_manifest(promise)
    target.refused(FormatError, "refutes the promise")


@pytest.mark.parametrize("audit", ["pass", [], {}, True, 0, [HONEST]])
def test_an_audit_that_is_none_is_refused(target: Target, audit: Any) -> None:
    _tell(target, audit)
    target.refused(FormatError, "not a Manifest")


@pytest.mark.parametrize("name", HONEST)
def test_a_missing_field_is_refused(target: Target, name: str) -> None:
    _tell(target, {field: value for field, value in HONEST.items() if field != name})
    target.refused(FormatError, "not a Manifest|canonical form")


@pytest.mark.parametrize(("number", "spelt"), [("0.31", "-0.0"), ("0.31", "3.1e-1")])
def test_another_spelling_of_a_number_is_refused(target: Target, number: str, spelt: str) -> None:
    _tell(target, HONEST)
    target.change_text(f'"epsilon_low":{number}', f'"epsilon_low":{spelt}')
    target.refused(FormatError, "canonical form")
