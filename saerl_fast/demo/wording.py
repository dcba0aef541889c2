"""How the facts are said: the topics, their words and their paraphrases.

Every level of a topic uses the same templates and the same words. ``{a}`` and ``{b}`` are items, ``{n}`` the number
(or "some" where a problem leaves it out), ``{x}`` a number that has nothing to do with the answer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from saerl_fast.demo.structures import Fact, Instance

VAGUE = ("some", "several")
"""What stands in the text in place of a number that is left out."""

INTRO_SHARE = 0.25

PEOPLE = (
    "Ana", "Ben", "Carla", "Dan", "Eva", "Finn", "Greta", "Hugo", "Iris", "Jon", "Kira", "Leo",
)  # fmt: skip

PLURALS = {
    "crate": "crates", "box": "boxes", "bag": "bags", "tin": "tins", "jar": "jars", "sack": "sacks",
    "tray": "trays", "basket": "baskets", "chest": "chests", "case": "cases", "drawer": "drawers",
    "carton": "cartons",
}  # fmt: skip
"""The containers; what is counted ({b}) stands in the plural."""


@dataclass(frozen=True)
class Topic:
    """``facts`` maps the form of a fact to its paraphrases; ``sorts`` are the kinds a selection chooses by."""

    name: str
    structure: str
    names: tuple[str, ...]
    intros: tuple[str, ...]
    facts: Mapping[str, tuple[str, ...]]
    questions: tuple[str, ...]
    sorts: tuple[str, ...] = ()


TOPICS: dict[str, Topic] = {}


def _add(topic: Topic) -> None:
    TOPICS[topic.name] = topic


_add(
    Topic(
        "marbles",
        "chain",
        PEOPLE,
        (
            "Children play marbles in yard {x}.",
            "A marble club of {x} years meets.",
            "Children count marbles {x} times.",
        ),
        {
            "value": ("{a} has {n} marbles.", "{a} owns {n} marbles."),
            "more": ("{a} has {n} more marbles than {b} has.", "{a} has {n} more than {b} does."),
            "fewer": ("{a} has {n} fewer marbles than {b} has.", "{a} has {n} fewer than {b} does."),
        },
        (
            "How many marbles does {a} have?",
            "How many marbles does {a} own?",
            "What is the number of marbles of {a}?",
        ),
    )
)
_add(
    Topic(
        "ages",
        "chain",
        PEOPLE,
        ("A family lives at house {x}.", "Cousins meet on day {x}.", "The family bakes {x} birthday cakes."),
        {
            "value": ("{a} is {n} years old.", "{a} turned {n} years old."),
            "more": ("{a} is {n} years older than {b} is.", "{a} was born {n} years before {b} was."),
            "fewer": ("{a} is {n} years younger than {b} is.", "{a} was born {n} years after {b} was."),
        },
        ("How old is {a}?", "How many years old is {a}?", "What is the age of {a}?"),
    )
)
_add(
    Topic(
        "timetable",
        "chain",
        (
            "chess",
            "dance",
            "piano",
            "drama",
            "judo",
            "yoga",
            "violin",
            "choir",
            "pottery",
            "french",
            "latin",
            "sewing",
        ),
        ("A school prints timetable {x}.", "Lessons are in room {x}.", "The school bell rings {x} times."),
        {
            "value": ("The {a} lesson starts at hour {n}.", "The {a} lesson begins at hour {n}."),
            "more": (
                "The {a} lesson starts {n} hours after {b}.",
                "The {a} lesson begins {n} hours later than {b}.",
            ),
            "fewer": (
                "The {a} lesson starts {n} hours before {b}.",
                "The {a} lesson begins {n} hours earlier than {b}.",
            ),
        },
        (
            "At what hour does the {a} lesson start?",
            "When does the {a} lesson begin?",
            "What is the starting hour of the {a} lesson?",
        ),
    )
)
_add(
    Topic(
        "bus",
        "journey",
        (
            "mill",
            "park",
            "church",
            "harbour",
            "museum",
            "bridge",
            "market",
            "castle",
            "zoo",
            "stadium",
            "hospital",
            "airport",
        ),
        ("The driver of bus {x} is on time.", "Bus line {x} runs today.", "The bus ticket costs {x} euros."),
        {
            "start": ("The bus leaves with {n} riders.", "The bus sets off with {n} riders."),
            "gain": ("At the {a} {n} riders get on.", "At the {a} {n} more board."),
            "loss": ("At the {a} {n} riders get off.", "At the {a} {n} leave."),
        },
        (
            "How many riders are on the bus after the {a}?",
            "What is the number of riders after the {a} stop?",
            "After the {a}, how many riders are left?",
        ),
    )
)
_add(
    Topic(
        "coins",
        "journey",
        (
            "baker",
            "tailor",
            "butcher",
            "florist",
            "barber",
            "grocer",
            "jeweller",
            "potter",
            "cobbler",
            "brewer",
            "painter",
            "printer",
        ),
        ("A trader walks down street {x}.", "It is day {x} of the fair.", "The purse weighs {x} ounces."),
        {
            "start": ("The purse holds {n} coins at first.", "A trader begins with {n} coins."),
            "gain": ("The {a} pays {n} coins.", "The {a} gives {n} coins."),
            "loss": ("The {a} takes {n} coins.", "The {a} costs {n} coins."),
        },
        (
            "How many coins are in the purse after the {a}?",
            "What is the number of coins after the {a}?",
            "After the {a}, how many coins are left?",
        ),
    )
)
_add(
    Topic(
        "farm",
        "selection",
        (
            "hens",
            "goats",
            "ducks",
            "sheep",
            "cows",
            "pigs",
            "geese",
            "horses",
            "donkeys",
            "rabbits",
            "turkeys",
            "ponies",
        ),
        ("The farm has {x} fields.", "A farmer gets up at hour {x}.", "The barn is {x} years old."),
        {"item": ("There are {n} {b} {a}.", "The farmer has {n} {b} {a}.", "The farm keeps {n} {b} {a}.")},
        (
            "How many {a} animals are there, not counting {b} ones?",
            "What is the number of {a} animals, leaving out {b} ones?",
            "Without {b} ones, how many {a} animals are there?",
        ),
        ("white", "black", "brown", "grey", "spotted", "striped"),
    )
)
_add(
    Topic(
        "library",
        "selection",
        (
            "atlases",
            "novels",
            "poems",
            "comics",
            "guides",
            "diaries",
            "plays",
            "essays",
            "fables",
            "legends",
            "manuals",
            "sagas",
        ),
        ("The library has {x} windows.", "A reader sits at desk {x}.", "The library closes at hour {x}."),
        {"item": ("There are {n} {b} {a}.", "The shelf holds {n} {b} {a}.", "The library has {n} {b} {a}.")},
        (
            "How many {a} books are there, not counting {b} ones?",
            "What is the number of {a} books, leaving out {b} ones?",
            "Without {b} ones, how many {a} books are there?",
        ),
        ("red", "blue", "green", "yellow", "torn", "leather"),
    )
)
_add(
    Topic(
        "packing",
        "nesting",
        tuple(PLURALS),
        ("The warehouse has {x} doors.", "A worker packs for {x} hours.", "Truck {x} is loaded."),
        {"holds": ("Each {a} contains {n} {b}.", "Every {a} holds {n} {b}.", "In one {a} are {n} {b}.")},
        (
            "How many {b} fit in one {a}?",
            "What is the number of {b} in each {a}?",
            "How many {b} does every {a} hold?",
        ),
    )
)


def say(instance: Instance, rng: random.Random) -> str:
    """The problem as text: sometimes an introduction, the facts in their order, the question."""
    topic = TOPICS[instance.topic]
    sentences = []
    if rng.random() < INTRO_SHARE:
        sentences.append(rng.choice(topic.intros).format(x=rng.randint(2, 20)))
    sentences.extend(_say_fact(fact, topic, rng) for fact in instance.facts)
    a, b = (*instance.asked, "")[:2]
    sentences.append(rng.choice(topic.questions).format(a=a, b=PLURALS.get(b, b)))
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _say_fact(fact: Fact, topic: Topic, rng: random.Random) -> str:
    number = str(fact.amount) if fact.stated else rng.choice(VAGUE)
    return rng.choice(topic.facts[fact.form]).format(a=fact.subject, b=PLURALS.get(fact.other, fact.other), n=number)
