"""How the facts are said: the topics, their words and their paraphrases.

Every level of a topic uses the same templates and the same words. A fact is introduced by its ordinal, and names what
it starts from before what it tells: a small policy that reads from left to right finds its way along such facts, and
hardly along the reverse. ``{a}`` and ``{b}`` are items, ``{n}`` the number (or "some" where a problem leaves it out),
``{x}`` a number that has nothing to do with the answer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from saerl_fast.demo.structures import ORDINALS, Fact, Instance

VAGUE = ("some", "several")
"""What stands in the text in place of a number that is left out."""

INTRO_SHARE = 0.25

PEOPLE = (
    "Ana", "Ben", "Carla", "Dan", "Eva", "Finn", "Greta", "Hugo", "Iris", "Jon", "Kira", "Leo",
)  # fmt: skip


@dataclass(frozen=True)
class Topic:
    """``facts`` maps the form of a fact to its paraphrases."""

    name: str
    structure: str
    names: tuple[str, ...]
    intros: tuple[str, ...]
    facts: Mapping[str, tuple[str, ...]]
    questions: tuple[str, ...]


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
            "more": ("compared with {b}, {a} has {n} more.", "next to {b}, {a} owns {n} more."),
            "fewer": ("compared with {b}, {a} has {n} fewer.", "next to {b}, {a} owns {n} fewer."),
        },
        ("How many marbles does {a} have?", "How many marbles does {a} own?", "What number of marbles has {a}?"),
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
            "more": ("compared with {b}, {a} is {n} older.", "next to {b}, {a} looks {n} older."),
            "fewer": ("compared with {b}, {a} is {n} younger.", "next to {b}, {a} looks {n} younger."),
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
            "value": ("{a} starts {n} hours past dawn.", "{a} begins {n} hours past dawn."),
            "more": ("compared with {b}, {a} starts {n} later.", "next to {b}, {a} begins {n} later."),
            "fewer": ("compared with {b}, {a} starts {n} earlier.", "next to {b}, {a} begins {n} earlier."),
        },
        (
            "How many hours past dawn does {a} start?",
            "How many hours past dawn does {a} begin?",
            "At what hour past dawn does {a} start?",
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
            "start": ("the bus carries {n} riders.", "the bus has {n} riders."),
            "gain": ("the {a} adds {n} riders.", "the {a} brings {n} riders."),
            "loss": ("the {a} drops {n} riders.", "the {a} loses {n} riders."),
        },
        (
            "How many riders are on the bus after the {a}?",
            "What number of riders leaves the {a}?",
            "How many riders sit in the bus past the {a}?",
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
            "start": ("the purse holds {n} coins.", "the purse contains {n} coins."),
            "gain": ("the {a} pays {n} coins.", "the {a} gives {n} coins."),
            "loss": ("the {a} takes {n} coins.", "the {a} costs {n} coins."),
        },
        (
            "How many coins are in the purse after the {a}?",
            "What number of coins is left after the {a}?",
            "How many coins has the trader after the {a}?",
        ),
    )
)
_add(
    Topic(
        "farm",
        "tally",
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
        {"item": ("the {a} number {n}.", "the {a} count {n}.")},
        (
            "How many animals are counted up to the {a}?",
            "What number of animals is counted up to the {a}?",
            "How many farm animals are there up to the {a}?",
        ),
    )
)
_add(
    Topic(
        "library",
        "tally",
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
        {"item": ("the {a} fill {n} places.", "the {a} take {n} places.")},
        (
            "How many places are filled up to the {a}?",
            "What number of places is taken up to the {a}?",
            "How many library places are full up to the {a}?",
        ),
    )
)
_add(
    Topic(
        "packing",
        "nesting",
        ("oak", "tin", "glass", "cork", "paper", "cloth", "steel", "brass", "wicker", "clay", "straw", "pine"),
        ("The warehouse has {x} doors.", "A worker packs for {x} hours.", "Truck {x} is loaded."),
        {"holds": ("inside each {a}, {b} boxes number {n}.", "within every {a}, {b} boxes count {n}.")},
        (
            "How many {b} boxes fit in one {a}?",
            "What number of {b} boxes is in each {a}?",
            "How many {b} boxes does every {a} hold?",
        ),
    )
)


def say(instance: Instance, rng: random.Random) -> str:
    """The problem as text: sometimes an introduction, the facts in their order, the question."""
    topic = TOPICS[instance.topic]
    sentences = []
    if rng.random() < INTRO_SHARE:
        sentences.append(rng.choice(topic.intros).format(x=rng.randint(2, 20)))
    sentences.extend(
        f"{ordinal}, {_say_fact(fact, topic, rng)}" for ordinal, fact in zip(ORDINALS, instance.facts, strict=False)
    )
    a, b = (*instance.asked, "")[:2]
    sentences.append(rng.choice(topic.questions).format(a=a, b=b))
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _say_fact(fact: Fact, topic: Topic, rng: random.Random) -> str:
    number = str(fact.amount) if fact.stated else rng.choice(VAGUE)
    return rng.choice(topic.facts[fact.form]).format(a=fact.subject, b=fact.other, n=number)
