"""Invented patient notes: nobody in them exists, and no real note was read to make them.

A seed makes a stream of patients; every patient has several notes of several kinds, which agree
with each other (same record number, background, drugs), as the notes of one person do. That makes
the patient, and not the note, the unit of privacy.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from moiety.demo.patients import Patient, new_patient, surname
from moiety.demo.wards import CONDITIONS


@dataclass(frozen=True)
class Note:
    """One note; ``patient_id`` ties the notes of a patient together."""

    patient_id: str
    text: str


def patient_notes(seed: int) -> Iterator[Note]:
    """Notes without end, patient by patient, two to six each. Same seed, same notes."""
    dice = random.Random(seed)
    numbers: set[str] = set()
    while True:
        patient = new_patient(dice, numbers)
        day = patient.arrived
        yield Note(patient.number, _finish(_admission(dice, patient, day), dice))
        kinds: list[Callable[[random.Random, Patient, date], str]] = dice.choices(
            (_progress, _nursing, _telephone, _clinic, _letter),
            (5, 4, 2, 3, 2),
            k=dice.randrange(5),
        )
        for kind in kinds:
            day += timedelta(days=dice.randrange(1, 6))
            yield Note(patient.number, _finish(kind(dice, patient, day), dice))
        day += timedelta(days=dice.randrange(1, 4))
        yield Note(patient.number, _finish(_discharge(dice, patient, day), dice))


def _admission(dice: random.Random, patient: Patient, day: date) -> str:
    parts = [
        _heading(dice, patient, day, "Admission note"),
        _opening(dice, patient),
        _background(dice, patient),
        _social(dice, patient),
        f"{_vitals(dice, unwell=True)} {_examination(dice, patient)}",
        _results(dice, patient),
        _impression(dice, patient),
        _plan(dice, patient),
    ]
    return "\n".join(part for part in parts if part)


def _progress(dice: random.Random, patient: Patient, day: date) -> str:
    they = patient.they[0].capitalize()
    complaint = dice.choice(patient.condition.complaints)
    course = dice.choice(
        (
            f"{they} had a settled night and reports less {_bare(complaint)}.",
            f"No change since yesterday; still troubled by {complaint}.",
            f"{they} is brighter, ate {dice.choice(_MEALS)} and walked {dice.choice(_WALKS)}.",
            f"Overnight {patient.they[0]} was reviewed for {complaint}; it passed by itself.",
            f"Feels {dice.choice(('better', 'much the same', 'worn out', 'well'))} today. "
            f"{_capital(complaint)} {dice.choice(('is easing', 'has gone', 'comes and goes'))}.",
        )
    )
    parts = [_heading(dice, patient, day, "Ward round"), course, _vitals(dice, unwell=False)]
    parts.append(_results(dice, patient) if dice.random() < 0.6 else _examination(dice, patient))
    parts.append(_plan(dice, patient))
    return "\n".join(parts)


def _nursing(dice: random.Random, patient: Patient, day: date) -> str:
    they, their, _ = patient.they
    remarks = dice.sample(
        (
            f"{patient.name.split()[0]} took {dice.choice(_MEALS)}.",
            f"Mobilised {dice.choice(_WALKS)}.",
            f"Fluid balance {dice.randrange(-900, 1300):+d} ml over 24 hours.",
            f"Skin intact; Waterlow score {dice.randrange(4, 22)}.",
            f"Asked when {they} may go home; the plan was explained again.",
            f"Pain scored {dice.randrange(0, 9)} out of 10, {dice.choice(_RELIEF)}.",
            f"{patient.drugs[0].capitalize()} given at {_clock(dice)} as prescribed.",
            f"A relative telephoned at {_clock(dice)} and was told with {their} consent.",
            f"Refused the {_clock(dice)} observations, accepted them an hour later.",
            f"Cannula in the {dice.choice(('left', 'right'))} {dice.choice(_SITES)} replaced.",
            f"Slept {dice.randrange(2, 9)} hours.",
            f"Allergy band checked: {patient.allergy}.",
        ),
        dice.randrange(4, 8),
    )
    remarks.insert(dice.randrange(len(remarks)), _vitals(dice, unwell=False))
    return "\n".join([_heading(dice, patient, day, "Nursing note"), " ".join(remarks)])


def _telephone(dice: random.Random, patient: Patient, day: date) -> str:
    they, their, _ = patient.they
    caller = dice.choice((patient.name, f"{_capital(their)} sister", "The practice nurse"))
    complaint = dice.choice(patient.condition.complaints)
    drug = dice.choice(patient.drugs)
    question = dice.choice(
        (
            f"asks whether {drug} may be taken with breakfast",
            f"reports {complaint} since {dice.choice(_WEEKDAYS)}",
            f"has run out of {drug}",
            f"is worried about {complaint}",
            f"wants the result of the {patient.condition.tests[0][0]}",
        )
    )
    answer = dice.choice(
        (
            f"Advised to carry on with {drug} and to ring again if {they} gets worse.",
            f"Booked with Dr {patient.doctor} on {dice.choice(_WEEKDAYS)} at {_clock(dice)}.",
            f"Explained that {dice.choice(patient.condition.plans)} is still the plan.",
            f"Prescription for {drug} sent; told to come in at once if there is {complaint}.",
        )
    )
    minutes = f"The call took {dice.randrange(3, 19)} minutes."
    return "\n".join(
        [_heading(dice, patient, day, "Telephone call"), f"{caller} {question}. {answer} {minutes}"]
    )


def _clinic(dice: random.Random, patient: Patient, day: date) -> str:
    weeks = dice.randrange(2, 15)
    opening = dice.choice(
        (
            f"Reviewed {weeks} weeks after {patient.condition.name}.",
            f"{patient.name} came to the {patient.condition.ward} clinic, {weeks} weeks on.",
            f"Seen with {dice.choice(_COMPANY)}; {weeks} weeks since the diagnosis of "
            f"{patient.condition.name}.",
        )
    )
    return "\n".join(
        [
            _heading(dice, patient, day, "Clinic"),
            f"{opening} {_medication(dice, patient)}",
            f"{_examination(dice, patient)} {_results(dice, patient)}",
            _plan(dice, patient),
        ]
    )


def _letter(dice: random.Random, patient: Patient, day: date) -> str:
    they, their, person = patient.they
    dear = dice.choice(("Dear colleague,", f"Dear Dr {surname(dice)},", "To the family doctor:"))
    thanks = dice.choice(
        (
            f"Thank you for sending this {_years(patient)} {person} with {_listed(dice, patient)}.",
            f"I saw {patient.name}, {patient.work}, because of {_listed(dice, patient)}.",
            f"Your patient {patient.name} was referred with {_listed(dice, patient)}.",
        )
    )
    wish = dice.choice(
        (
            f"I would be glad if you could arrange {dice.choice(patient.condition.plans)}.",
            f"Might I ask you to watch {their} {patient.condition.tests[0][0]}?",
            f"I have not made another appointment, but {they} may come back at any time.",
            f"{they.capitalize()} {patient.home}, and will need help at home.",
        )
    )
    body = " ".join([thanks, _examination(dice, patient), _results(dice, patient)])
    close = f"{_medication(dice, patient)} {wish}"
    return "\n".join([_heading(dice, patient, day, "Letter"), dear, body, close, patient.doctor])


def _discharge(dice: random.Random, patient: Patient, day: date) -> str:
    stay = (day - patient.arrived).days
    they, their, person = patient.they
    summary = dice.choice(
        (
            f"{patient.name} was with us for {_days(stay)} for {patient.condition.name}.",
            f"This {_years(patient)} {person} was treated for {patient.condition.name} and left "
            f"the ward on day {stay}.",
            f"Diagnosis: {patient.condition.name}. Length of stay: {_days(stay)}.",
        )
    )
    course = dice.choice(
        (
            f"{they.capitalize()} presented with {_listed(dice, patient)} and got better on "
            f"{patient.drugs[0]}.",
            f"After {patient.drugs[-1]} was started, {their} symptoms settled within "
            f"{dice.randrange(1, 6)} days.",
            f"The stay was complicated by {dice.choice(_COMPLICATIONS)}, which resolved.",
            f"{_results(dice, patient)} No complication.",
        )
    )
    parts = [
        _heading(dice, patient, day, "Discharge summary"),
        f"{summary} {course}",
        f"{_background(dice, patient)} {_medication(dice, patient)}",
        _plan(dice, patient),
        dice.choice(("Copy to patient.", f"Signed: Dr {patient.doctor}", "Copy to family doctor.")),
    ]
    return "\n".join(parts)


def _heading(dice: random.Random, patient: Patient, day: date, kind: str) -> str:
    when = dice.choice(
        (day.isoformat(), f"{day.day} {_MONTHS[day.month - 1]} {day.year}", f"{day:%d.%m.%Y}")
    )
    ward = patient.condition.ward
    return dice.choice(
        (
            f"{kind}, {ward}, {when}. {patient.name}, record {patient.number}.",
            f"{kind.upper()} ({ward})\nRecord {patient.number} | {patient.name} | {when}",
            f"{when} {kind}. Patient: {patient.name} ({patient.number}), {_years(patient)}.",
            f"Record number: {patient.number}\n{_capital(ward)}: {kind.lower()} of {when}",
        )
    )


def _opening(dice: random.Random, patient: Patient) -> str:
    person = f"{_years(patient)} {patient.they[2]}"
    days = dice.choice(("this morning", f"{dice.randrange(2, 12)} days ago", "over some weeks"))
    return dice.choice(
        (
            f"{patient.name} is a {person} who came with {_listed(dice, patient)}, begun {days}.",
            f"Brought by {dice.choice(_ARRIVAL)} with {_listed(dice, patient)}. Onset {days}.",
            f"This {person} describes {_listed(dice, patient)}. It started {days}.",
            f"Referred by Dr {surname(dice)} for {_listed(dice, patient)}; onset {days}.",
        )
    )


def _listed(dice: random.Random, patient: Patient) -> str:
    complaints = dice.sample(patient.condition.complaints, dice.randrange(1, 4))
    return _join(complaints)


def _background(dice: random.Random, patient: Patient) -> str:
    known = _join(dice.sample(patient.background, len(patient.background)))
    lead = dice.choice(("Past history:", "Background of", "Known to have", "Previous illness:"))
    allergy = dice.choice(("Allergies:", "Allergic to:", "Drug reactions:"))
    return f"{lead} {known}. {allergy} {patient.allergy}."


def _social(dice: random.Random, patient: Patient) -> str:
    they = patient.they[0].capitalize()
    sentences = [
        f"{they} is {patient.work}.",
        f"{they} {patient.home}.",
        f"{they} {patient.habit}.",
    ]
    return " ".join(dice.sample(sentences, dice.randrange(1, 4)))


def _vitals(dice: random.Random, *, unwell: bool) -> str:
    pulse = dice.randrange(84, 138) if unwell else dice.randrange(56, 98)
    pressure = f"{dice.randrange(86, 188)}/{dice.randrange(48, 104)}"
    warmth = round(dice.uniform(36.1, 39.6 if unwell else 37.8), 1)
    oxygen = dice.randrange(86, 100) if unwell else dice.randrange(93, 100)
    breaths = dice.randrange(14, 34) if unwell else dice.randrange(11, 21)
    return dice.choice(
        (
            f"Temperature {warmth} C, pulse {pulse}, BP {pressure}, saturation {oxygen} % on "
            f"{dice.choice(_AIR)}, respiratory rate {breaths}.",
            f"Obs: HR {pulse}, BP {pressure}, RR {breaths}, SpO2 {oxygen} %, T {warmth}.",
            f"Pulse {pulse} and blood pressure {pressure}; {oxygen} % on {dice.choice(_AIR)}.",
            f"NEWS {dice.randrange(5, 12) if unwell else dice.randrange(4)}, temperature {warmth}, "
            f"heart rate {pulse}, pressure {pressure} mmHg.",
        )
    )


def _examination(dice: random.Random, patient: Patient) -> str:
    found = _join(dice.sample(patient.condition.findings, dice.randrange(1, 4)))
    lead = dice.choice(("On examination", "Examination shows", "There is", "Today", "Noted:"))
    tail = dice.choice(
        (".", ".", f"; {dice.choice(_NORMAL)}.", f", otherwise {dice.choice(_FINE)}.")
    )
    return f"{lead} {found}{tail}"


def _results(dice: random.Random, patient: Patient) -> str:
    tests = dice.sample(
        patient.condition.tests, dice.randrange(1, len(patient.condition.tests) + 1)
    )
    texts = [_result(dice, *test) for test in tests]
    other = dice.choice(
        (
            f"creatinine {dice.randrange(48, 160)} micromol/L",
            f"potassium {dice.uniform(3.1, 5.4):.1f} mmol/L",
            f"haemoglobin {dice.randrange(82, 158)} g/L",
            f"platelets {dice.randrange(120, 420)}",
            "clotting normal",
            "blood cultures sent",
        )
    )
    lead = dice.choice(("Results:", "Blood and tests:", "Investigations:"))
    return f"{lead} {_join([*texts, other])}."


def _result(dice: random.Random, name: str, lowest: float, highest: float, unit: str) -> str:
    value = dice.uniform(lowest, highest)
    digits = 0 if highest - lowest > 20 else 1 if highest - lowest > 1 else 2
    shown = f"{value:.{digits}f} {unit}".strip()
    return dice.choice((f"{name} {shown}", f"{name} of {shown}", f"{name} was {shown}"))


def _impression(dice: random.Random, patient: Patient) -> str:
    name = patient.condition.name
    return dice.choice(
        (
            f"Impression: {name}.",
            f"Most likely {name}, differential {dice.choice(CONDITIONS).name}.",
            f"The picture fits {name}.",
            f"Working diagnosis: {name}, seen also by Dr {surname(dice)}.",
        )
    )


def _plan(dice: random.Random, patient: Patient) -> str:
    steps = [f"{drug} {dice.choice(_TIMES)}" for drug in patient.drugs]
    steps += [*patient.condition.plans, f"review in {dice.randrange(2, 15)} days"]
    chosen = dice.sample(steps, dice.randrange(2, len(steps) + 1))
    if dice.random() < 0.5:
        return "\n".join(["Plan:", *(f"{n}. {_capital(step)}" for n, step in enumerate(chosen, 1))])
    return f"{dice.choice(('Plan:', 'To do:', 'We agreed on'))} {_join(chosen)}."


def _medication(dice: random.Random, patient: Patient) -> str:
    drugs = _join([f"{drug} {dice.choice(_TIMES)}" for drug in patient.drugs])
    return f"{dice.choice(('Taking', 'Medication:', 'Current treatment is', 'Drugs:'))} {drugs}."


def _finish(text: str, dice: random.Random) -> str:
    return text if dice.random() < 0.7 else text.replace("\n", " ")


def _years(patient: Patient) -> str:
    return f"{patient.age}-year-old"


def _days(number: int) -> str:
    return "one day" if number == 1 else f"{number} days"


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _bare(text: str) -> str:
    return text.removeprefix("a ").removeprefix("an ")


def _clock(dice: random.Random) -> str:
    return f"{dice.randrange(24):02d}:{dice.randrange(0, 60, 5):02d}"


_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_MEALS = ("half of the lunch", "soup and bread", "a full breakfast", "only tea", "two spoonfuls")
_WALKS = ("to the window", "the length of the ward", "with a frame", "with two nurses", "unaided")
_RELIEF = ("eased by paracetamol", "worse on movement", "no relief from position", "gone by noon")
_SITES = ("forearm", "hand", "wrist", "elbow crease")
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "the weekend")
_COMPANY = ("a daughter", "a son", "an interpreter", "a neighbour", "the district nurse", "nobody")
_ARRIVAL = ("ambulance", "a neighbour", "the family", "taxi", "the police", "a colleague")
_AIR = ("room air", "2 litres of oxygen", "28 % oxygen", "nasal cannulae")
_NORMAL = ("heart sounds normal", "chest clear", "abdomen soft", "calves soft", "no rash")
_FINE = ("unremarkable", "well", "as before", "comfortable")
_TIMES = ("once daily", "twice daily", "at night", "every eight hours", "as directed", "for 7 days")
_COMPLICATIONS = (
    "a urinary infection",
    "a fall without injury",
    "low potassium",
    "one night of delirium",
    "a drug rash",
    "constipation",
)
