"""What is true in a problem, before any word is written.

A problem is a small set of facts and one question. The level says how many facts have to be joined to reach what is
asked; the numbers are drawn without looking at it, and every level has the same kinds of facts in the same amounts:

==========  ===========================================  ====================================================
structure   facts                                        level L in 1..5
==========  ===========================================  ====================================================
chain       one value, five differences in a chain       asks the item L - 1 differences away from the value
journey     a start and six changes, in order            asks the amount after change L
tally       seven counted items, in order                asks the total up to item L
nesting     seven containers, each inside the one        asks how many of item L fit into item 0
            before
==========  ===========================================  ====================================================

So words, word pairs and lengths carry (almost) nothing about the level. One fact, the *spare*, is needed at no
level; restatements and contradictions take its place, so that they change no length.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from saerl_fast.errors import InputError

LEVELS = 5

LARGEST = 60
"""Chains and journeys stay within 1..LARGEST at every step."""

AMOUNTS = {"value": (2, 40), "start": (2, 40), "holds": (2, 6)} | dict.fromkeys(
    ("more", "fewer", "gain", "loss", "item"), (2, 12)
)
"""Smallest and largest amount of a fact, by its form."""

LARGEST_PRODUCT = 96

SIGNS = {"more": "+", "gain": "+", "item": "+", "fewer": "-", "loss": "-", "holds": "x"}
"""What a fact does to the number so far, by its form."""


@dataclass(frozen=True)
class Fact:
    """One statement. ``amount`` is positive; ``form`` carries the sign (more / fewer, gain / loss).

    ``stated`` is False where the text says "some" instead of the number.
    """

    form: str
    subject: str
    other: str
    amount: int
    stated: bool = True


ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
"""What each fact of a text is introduced with, by its position."""


@dataclass(frozen=True)
class Instance:
    """A question about facts.

    ``facts`` are in the order in which they are used: along the chain, in time. ``needed`` are the positions of those
    the answer depends on; ``steps`` the result after each of them, the answer last (a journey or chain starts with its
    first value).
    """

    topic: str
    structure: str
    level: int
    facts: tuple[Fact, ...]
    asked: tuple[str, ...]
    needed: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def answer(self) -> int:
        return self.steps[-1]

    def worked(self) -> str:
        """The way to the answer: what is asked and which fact tells it; then, for each fact up to that one, the item,
        what the fact does to the number so far, and the result.

        A first value has no sign ("eva second dan 7 eva + 3 10"), and the start of a journey no item.
        """
        said = [self.asked[-1], ORDINALS[self.needed[-1]]]
        for place, step in zip(self.needed, self.steps, strict=True):
            fact = self.facts[place]
            item = fact.other if self.structure == "nesting" else fact.subject
            how = [] if fact.form in ("value", "start") else [SIGNS[fact.form], str(fact.amount)]
            said.extend([item, *how, str(step)] if item else [str(step)])
        return " ".join(said)

    @property
    def spare(self) -> int:
        """Position of the fact that no level needs: the last one."""
        return len(self.facts) - 1

    def key(self) -> str:
        """Identity of the facts, whatever their order, wording and question; decides the split."""
        facts = sorted(f"{f.form}|{f.subject}|{f.other}|{f.amount}" for f in self.facts)
        return f"{self.topic}:{';'.join(facts)}"


@dataclass(frozen=True)
class Structure:
    """``draw(names, rng)`` gives facts in the order in which they are used; ``ask(facts, level)`` what is asked at a
    level and the facts it needs."""

    draw: Callable[[tuple[str, ...], random.Random], list[Fact]]
    ask: Callable[[list[Fact], int], tuple[tuple[str, ...], list[int]]]


def draw(structure: str, topic: str, names: tuple[str, ...], level: int, rng: random.Random) -> Instance:
    """One instance of a structure, with items taken from ``names``."""
    if not 1 <= level <= LEVELS:
        raise InputError(f"draw: wanted a level of 1..{LEVELS} for {structure}; got {level}")
    return _question(topic, structure, STRUCTURES[structure].draw(names, rng), level)


def questions(instance: Instance) -> list[Instance]:
    """The questions of levels 1..5 that can be asked of the same facts.

    ``instance`` must be as drawn, without a fault.
    """
    facts = list(instance.facts)
    return [_question(instance.topic, instance.structure, facts, level) for level in range(1, LEVELS + 1)]


def _question(topic: str, structure: str, facts: list[Fact], level: int) -> Instance:
    asked, used = STRUCTURES[structure].ask(facts, level)
    steps = _steps([facts[fact] for fact in used])
    return Instance(topic, structure, level, tuple(facts), asked, tuple(used), steps)


def _steps(used: list[Fact]) -> tuple[int, ...]:
    """The result after each fact, taken one by one."""
    steps: list[int] = []
    for fact in used:
        if fact.form in ("more", "gain", "item"):
            steps.append((steps[-1] if steps else 0) + fact.amount)
        elif fact.form in ("fewer", "loss"):
            steps.append(steps[-1] - fact.amount)
        elif fact.form == "holds":
            steps.append((steps[-1] if steps else 1) * fact.amount)
        else:
            steps.append(fact.amount)
    return tuple(steps)


def _walk(steps: int, rng: random.Random) -> tuple[int, list[int]]:
    """A start and ``steps`` signed changes, every running value within 1..LARGEST."""
    while True:
        start = rng.randint(*AMOUNTS["start"])
        changes = [rng.choice((-1, 1)) * rng.randint(*AMOUNTS["gain"]) for _ in range(steps)]
        if all(1 <= value <= LARGEST for value in itertools.accumulate(changes, initial=start)):
            return start, changes


def _draw_chain(names: tuple[str, ...], rng: random.Random) -> list[Fact]:
    items = rng.sample(names, 6)
    start, changes = _walk(5, rng)
    facts = [Fact("value", items[0], "", start)]
    for place, change in enumerate(changes):
        facts.append(Fact("more" if change > 0 else "fewer", items[place + 1], items[place], abs(change)))
    return facts


def _ask_chain(facts: list[Fact], level: int) -> tuple[tuple[str, ...], list[int]]:
    return (facts[level - 1].subject,), list(range(level))


def _draw_journey(names: tuple[str, ...], rng: random.Random) -> list[Fact]:
    start, changes = _walk(6, rng)
    facts = [Fact("start", "", "", start)]
    for place, change in zip(rng.sample(names, 6), changes, strict=True):
        facts.append(Fact("gain" if change > 0 else "loss", place, "", abs(change)))
    return facts


def _ask_journey(facts: list[Fact], level: int) -> tuple[tuple[str, ...], list[int]]:
    return (facts[level].subject,), list(range(level + 1))


def _draw_tally(names: tuple[str, ...], rng: random.Random) -> list[Fact]:
    return [Fact("item", item, "", rng.randint(*AMOUNTS["item"])) for item in rng.sample(names, 7)]


def _ask_tally(facts: list[Fact], level: int) -> tuple[tuple[str, ...], list[int]]:
    return (facts[level - 1].subject,), list(range(level))


def _draw_nesting(names: tuple[str, ...], rng: random.Random) -> list[Fact]:
    items = rng.sample(names, 7)
    while True:
        amounts = rng.choices((2, 3, 4, 5, 6), (12, 4, 2, 1, 1), k=6)
        if list(itertools.accumulate(amounts[:5], lambda a, b: a * b))[-1] <= LARGEST_PRODUCT:
            break
    return [Fact("holds", items[place], items[place + 1], amounts[place]) for place in range(6)]


def _ask_nesting(facts: list[Fact], level: int) -> tuple[tuple[str, ...], list[int]]:
    return (facts[0].subject, facts[level - 1].other), list(range(level))


STRUCTURES: dict[str, Structure] = {
    "chain": Structure(_draw_chain, _ask_chain),
    "journey": Structure(_draw_journey, _ask_journey),
    "tally": Structure(_draw_tally, _ask_tally),
    "nesting": Structure(_draw_nesting, _ask_nesting),
}
