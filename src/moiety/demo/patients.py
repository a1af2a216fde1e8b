"""People who do not exist: names of invented syllables, record numbers, a past, a home."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import date, timedelta

from moiety.demo.wards import CONDITIONS, Condition


@dataclass(frozen=True)
class Patient:
    """A person who does not exist."""

    number: str
    name: str
    age: int
    they: tuple[str, str, str]
    condition: Condition
    background: tuple[str, ...]
    drugs: tuple[str, ...]
    allergy: str
    work: str
    home: str
    habit: str
    doctor: str
    arrived: date


def new_patient(dice: random.Random, numbers: set[str]) -> Patient:
    """Draws a patient whose record number is not in ``numbers``, and adds it there."""
    condition = dice.choice(CONDITIONS)
    return Patient(
        number=_number(dice, numbers),
        name=f"{dice.choice(_FIRST_NAMES.split())} {surname(dice)}",
        age=_age(dice, condition),
        they=_pronouns(dice, condition),
        condition=condition,
        background=tuple(dice.sample(_BACKGROUND, dice.randrange(1, 4))),
        drugs=tuple(f"{name} {dice.choice(doses)}" for name, doses in condition.drugs),
        allergy=dice.choice(_ALLERGIES),
        work=dice.choice(_WORK),
        home=dice.choice(_HOME),
        habit=dice.choice(_HABITS),
        doctor=surname(dice),
        arrived=date(2019, 1, 1) + timedelta(days=dice.randrange(2000)),
    )


def _number(dice: random.Random, numbers: set[str]) -> str:
    while True:
        number = f"{dice.choice('ABCDEFHKMNPRST')}{dice.randrange(10**6):06d}-{dice.randrange(10)}"
        if number not in numbers:
            numbers.add(number)
            return number


def surname(dice: random.Random) -> str:
    """A family name put together from two syllables."""
    return dice.choice(_NAME_STARTS.split()) + dice.choice(_NAME_ENDS.split())


def _age(dice: random.Random, condition: Condition) -> int:
    lowest, highest = {
        "obstetrics": (19, 44),
        "geriatric medicine": (74, 97),
    }.get(condition.ward, (21, 92))
    return dice.randint(lowest, highest)


def _pronouns(dice: random.Random, condition: Condition) -> tuple[str, str, str]:
    hers, his = ("she", "her", "woman"), ("he", "his", "man")
    return hers if condition.ward == "obstetrics" else dice.choice((hers, his))


_BACKGROUND = (
    "hypertension",
    "osteoarthritis of both knees",
    "hypercholesterolaemia",
    "hay fever",
    "an old inferior infarct",
    "stage 3a chronic kidney disease",
    "coeliac disease",
    "gallstones found by chance",
    "eczema since childhood",
    "a partial thyroidectomy",
    "glaucoma treated with drops",
    "sleep apnoea on CPAP",
    "diverticular disease",
    "a total hip replacement on the left",
    "psoriasis",
    "a penicillin reaction in childhood",
    "restless legs",
    "a repaired inguinal hernia",
    "previous tuberculosis, fully treated",
    "carpal tunnel release",
    "macular degeneration",
    "chronic low back pain",
)

_ALLERGIES = (
    "penicillin (rash)",
    "none known",
    "codeine (vomiting)",
    "latex",
    "trimethoprim (facial swelling)",
    "none known",
    "sticking plaster",
    "ibuprofen (wheeze)",
    "none known",
    "iodinated contrast",
    "shellfish",
    "nickel",
)

_WORK = (
    "a retired tram driver",
    "a baker",
    "a primary school teacher",
    "a night-shift warehouse worker",
    "a beekeeper",
    "a retired seamstress",
    "a plumber",
    "a translator",
    "a farm hand",
    "a librarian",
    "a hairdresser",
    "a retired surveyor",
    "a cook in a canteen",
    "a ferry mechanic",
    "a piano tuner",
    "a bricklayer",
    "unemployed at present",
    "a bookkeeper",
    "a gardener",
    "a postal worker",
)

_HOME = (
    "lives alone in a ground-floor flat",
    "lives with a daughter and two dogs",
    "lives with an elderly mother",
    "is in sheltered housing with a warden",
    "lives with a partner who is the main carer",
    "has carers twice a day",
    "lives on a farm an hour from the hospital",
    "shares a house with three friends",
    "has stairs without a second rail",
    "is in a nursing home",
    "lives with grandchildren at weekends",
    "lives on a narrowboat",
)

_HABITS = (
    "never smoked and drinks little",
    "smokes ten a day",
    "stopped smoking five years ago",
    "drinks a bottle of wine on most weekends",
    "drinks no alcohol",
    "has a history of 30 pack-years",
    "vapes but no longer smokes",
    "drinks two beers with supper",
)

_NAME_STARTS = """
Abel Adri Bela Berin Cald Cora Dalen Dori Elbe Emar Fael Fenn Galen Garr Hald Hele Ilin Isen
Jora Jass Kael Kiri Lund Lore Mara Mell Nael Noor Orla Oste Pela Perr Quin Ravi Renn Sael
Sorr Tave Teol Ulri Vann Vela Wend Wyll Yara Zeni
"""

_NAME_ENDS = """
bek bold by cote dane den don drum fen ford gard grave ham hart holt kirk land lin ling low
mar mere mont nor pen quist ram rick row sand sby sen shaw stad strom thorn tis tor vale van
vik wald wick win worth zin
"""

_FIRST_NAMES = """
Adelin Aldo Amara Anselm Ansa Bastian Benna Brisa Caspar Celine Corin Dagny Damir Delia Edda
Elio Emeka Enna Fabio Farah Fenja Gero Gita Hanno Hedda Ilan Imke Ines Jaro Jonna Kasia Kofi
Lasse Leda Linus Lotte Mads Maelle Milo Mirja Nadim Neele Nils Oda Olin Oriel Pavo Pia
Quentin Rasa Remo Runa Sanna Silas Sunniva Tariq Tilda Tomma Ulla Ugo Vesna Viggo Wanja Wim
Yuna Zora
"""
