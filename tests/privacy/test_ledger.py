"""What is charged, when, and what a resumed run may not change."""

from __future__ import annotations

import re
import stat

import pytest

from moiety.errors import ConfigError, DataError, FormatError, StateError
from moiety.files import canonical_json, parse_json
from moiety.privacy import Ledger, accountant
from moiety.privacy.ledger import LedgerPaper
from moiety.privacy.plan import PrivacyPlan
from moiety.privacy.seeds import SECRET_FILE, Secret


@pytest.fixture
def begun(tmp_path, request_):
    """A ledger whose plan keeps no budget, but was written as one is."""
    plan = PrivacyPlan(request=request_, noise_multiplier=1.0, table_noise_multiplier=1.0)
    paper = LedgerPaper(plan=plan, secret_sha256=Secret.open(tmp_path).digest)
    (tmp_path / "ledger.json").write_bytes(canonical_json(paper.model_dump(mode="json")))
    return tmp_path


def told(folder):
    return parse_json((folder / "ledger.json").read_bytes(), "ledger")


def test_a_charge_stands_before_anything_else_happens_and_is_never_taken_back(begun, request_):
    ledger = Ledger.open(begun, request_)
    assert (told(begun)["table_charged"], told(begun)["steps_charged"]) == (False, 0)
    ledger.charge_table()
    ledger.charge_step(0)
    ledger.charge_step(1)
    assert (told(begun)["table_charged"], told(begun)["steps_charged"]) == (True, 2)
    again = Ledger.open(begun, request_)
    assert again.paper == ledger.paper
    again.charge_step(0)  # a step that is repeated after a crash
    assert told(begun)["steps_charged"] == 2
    with pytest.raises(StateError, match="a step more"):
        again.charge_step(request_.steps)


@pytest.mark.parametrize(
    "change",
    [
        *({"epsilon": 0.6}, {"records": 51}, {"clip_norm": 2.0}, {"steps": 5}),
        *({"tuning_runs": 0}, {"settings_sha256": "0" * 64}),
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_request_is_refused(begun, request_, change):
    with pytest.raises(StateError, match="other settings"):
        Ledger.open(begun, request_.model_copy(update=change))


def test_another_secret_is_refused(begun, request_):
    (begun / SECRET_FILE).unlink()
    with pytest.raises(StateError, match="another secret"):
        Ledger.open(begun, request_)


@pytest.mark.parametrize("data", [b"{}\n", b"[", b'{"format":"moiety.ledger/2"}\n'])
def test_a_damaged_ledger_is_refused(tmp_path, request_, data):
    (tmp_path / "ledger.json").write_bytes(data)
    with pytest.raises(FormatError):
        Ledger.open(tmp_path, request_)


def test_the_secret_is_the_systems_and_its_owners(tmp_path):
    one, other = Secret.open(tmp_path / "a"), Secret.open(tmp_path / "b")
    assert one.data != other.data
    assert Secret.open(tmp_path / "a") == one
    mode = (tmp_path / "a" / SECRET_FILE).stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    assert one.data.hex() not in repr(one)
    drawn = {one.generator(p, s).random() for p in ("records", "noise") for s in (0, 1, 256)}
    assert len(drawn) == 6
    (tmp_path / "a" / SECRET_FILE).write_bytes(b"short")
    with pytest.raises(StateError, match="damaged"):
        Secret.open(tmp_path / "a")


def test_the_plan_keeps_the_budget_and_wastes_little(tmp_path, request_):
    plan = Ledger.open(tmp_path, request_).paper.plan
    found = plan.spent()
    assert 0.99 * request_.epsilon < found.epsilon <= request_.epsilon
    assert found.epsilon_rdp >= found.epsilon
    table = accountant.Mechanisms(1e-9, 1.0, 1, plan.table_noise_multiplier)
    assert accountant.spent(table, request_.delta).epsilon <= 0.1 * request_.epsilon


def test_earlier_runs_are_counted_when_they_are_told(request_):
    plan, many = (PrivacyPlan.of(request_.model_copy(update={"tuning_runs": n})) for n in (0, 3))
    assert many.noise_multiplier > plan.noise_multiplier
    once = accountant.Mechanisms(
        many.request.sampling_rate,
        many.noise_multiplier,
        request_.steps,
        many.table_noise_multiplier,
    )
    assert accountant.spent(once, request_.delta).epsilon < many.spent().epsilon <= 0.5


def test_a_budget_that_no_noise_keeps_is_refused(request_):
    with pytest.raises(ConfigError, match="more noise"):
        PrivacyPlan.of(request_.model_copy(update={"epsilon": 1e-5, "delta": 1e-12}))


def test_a_share_of_the_table_that_no_noise_keeps_is_told_by_what_was_asked(request_):
    asked = request_.model_copy(update={"epsilon": 0.0002, "delta": 1e-6, "table_share": 0.05})
    with pytest.raises(ConfigError) as caught:
        PrivacyPlan.of(asked)
    assert caught.value.message.startswith("epsilon 0.0002 at delta 1e-06 is too little")
    assert "share of epsilon is 1e-05 (privacy.table_share 0.05)" in caught.value.message
    tenth = request_.default_delta(10**6)
    with pytest.raises(ConfigError, match=r"left out: a tenth of one over 1,000,000 records"):
        PrivacyPlan.of(asked.model_copy(update={"records": 10**6, "delta": tenth}))


@pytest.mark.parametrize(("epsilon", "share"), [(5e-324, 0.1), (1e-323, 0.1), (1e-200, 1e-200)])
def test_so_is_one_whose_share_is_rounded_to_nothing(request_, epsilon, share):
    asked = request_.model_copy(update={"epsilon": epsilon, "table_share": share})
    with pytest.raises(ConfigError, match="too little") as caught:
        PrivacyPlan.of(asked)
    assert "share of epsilon is 0 " in caught.value.message
    assert "allow a larger epsilon" in caught.value.remedy


def test_delta_is_a_tenth_of_a_record_and_never_a_whole_one(request_):
    assert request_.default_delta(200) == pytest.approx(1 / 2000)
    assert request_.check() is request_
    with pytest.raises(ConfigError, match="promises nothing"):
        request_.model_copy(update={"delta": 0.03}).check()


@pytest.mark.parametrize("records", [5, 7, 50, 60, 64, 1000, 1916, 999_983])
def test_the_delta_that_a_refusal_names_is_allowed_and_close_to_the_most(request_, records):
    asked = request_.model_copy(update={"records": records, "delta": 0.9})
    with pytest.raises(ConfigError) as caught:
        asked.check()
    named = float(re.search(r"at most ([0-9.e-]+),", caught.value.remedy)[1])
    assert asked.model_copy(update={"delta": named}).check().delta == named
    with pytest.raises(ConfigError, match="promises nothing"):
        asked.model_copy(update={"delta": 1.2 * named}).check()


def test_more_records_than_there_are_is_refused(request_):
    request_.model_copy(update={"expected_records": 50.0}).check()
    with pytest.raises(DataError, match="expects 51 records"):
        request_.model_copy(update={"expected_records": 51.0}).check()
