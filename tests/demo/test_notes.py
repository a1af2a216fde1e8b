"""The invented notes: many patients, several notes each, consistent, and not one template."""

import itertools
import lzma
import re
from collections import Counter, defaultdict

import pytest

from moiety.demo.notes import patient_notes


@pytest.fixture(scope="module")
def notes():
    return list(itertools.islice(patient_notes(7), 1500))


def test_same_seed_same_notes_and_another_seed_other_notes(notes):
    assert list(itertools.islice(patient_notes(7), 1500)) == notes
    assert list(itertools.islice(patient_notes(8), 1500)) != notes


def test_a_patient_has_several_notes_and_they_stand_together(notes):
    runs = [(patient, len(list(run))) for patient, run in itertools.groupby(notes, _patient)]
    assert len({patient for patient, _ in runs}) == len(runs) >= 300
    assert all(2 <= length <= 6 for _, length in runs[:-1])
    assert {length for _, length in runs[:-1]} == {2, 3, 4, 5, 6}


def _patient(note):
    return note.patient_id


def test_every_note_carries_the_record_number_of_its_patient_and_no_other(notes):
    for note in notes:
        assert set(re.findall(r"\b[A-Z]\d{6}-\d\b", note.text)) == {note.patient_id}


def test_notes_of_a_patient_agree_on_name_and_age(notes):
    ages = defaultdict(set)
    for note in notes:
        ages[note.patient_id] |= set(re.findall(r"(\d+)-year-old", note.text))
    assert all(len(found) <= 1 for found in ages.values())
    assert sum(len(found) == 1 for found in ages.values()) > 250


def test_the_frames_vary_and_no_note_occurs_twice(notes):
    assert len({note.text for note in notes}) == len(notes)
    grams = Counter()
    for note in notes:
        words = re.findall(r"\w+", note.text)
        grams.update(zip(*(words[start:] for start in range(8)), strict=False))
    assert len(grams) / grams.total() > 0.75
    assert grams.most_common(1)[0][1] < len(notes) / 10


def test_there_is_something_to_learn_and_something_to_guess(notes):
    text = "\n".join(note.text for note in notes).encode()
    bits = 8 * len(lzma.compress(text)) / len(text)
    # prose of this size packs to about 2.3 bits a byte, one template with blanks to under 0.4
    assert 0.7 < bits < 2.0
