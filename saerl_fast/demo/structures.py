"""What is true in a problem, before any word is written.

A problem is a small set of facts and one question. The level says how many facts have to be joined to reach what is
asked; the numbers are drawn without looking at it, and every level has the same kinds of facts in the same amounts:

==========  ===========================================  ====================================================
structure   facts                                        level L in 1..5
==========  ===========================================  ====================================================
chain       one value, five differences in a chain       asks the item L - 1 differences away from the value
journey     a start and six changes, in order            asks the amount after change L
selection   seven counted items of three sorts, each     asks the total of the sort that has L items
            sort together
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

LARGEST = 15
"""Chains and journeys stay within 1..LARGEST at every step."""

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


@dataclass(frozen=True)
class Instance:
    """A question about facts.

    ``facts`` are in text order. ``places`` gives the text position of each fact in its logical order (along the
    chain, in time, by sort). ``needed`` are the text positions the answer depends on, in the order they are used;
    ``steps`` the result after each of them, the answer last (a journey or chain starts with its first value).
    """

    topic: str
    structure: str
    level: int
    facts: tuple[Fact, ...]
    places: tuple[int, ...]
    asked: tuple[str, ...]
    needed: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def answer(self) -> int:
        return self.steps[-1]

    def worked(self) -> str:
        """The way to the answer, fact by fact: the item, what its fact does to the number so far, the result.

        A first value has no sign ("dan 7 eva + 3 10"); the start of a journey is not said.
        """
        said = []
        for place, step in zip(self.needed, self.steps, strict=True):
            fact = self.facts[place]
            item = fact.other if self.structure == "nesting" else fact.subject
            if fact.form == "value":
                said.append(f"{item} {step}")
            elif item:
                said.append(f"{item} {SIGNS[fact.form]} {fact.amount} {step}")
        return " ".join(said)

    @property
    def spare(self) -> int:
        """Text position of the fact that no level needs: the last one in logical order."""
        return self.places[-1]

    def key(self) -> str:
        """Identity of the facts, whatever their order, wording and question; decides the split."""
        facts = sorted(f"{f.form}|{f.subject}|{f.other}|{f.amount}" for f in self.facts)
        return f"{self.topic}:{';'.join(facts)}"


@dataclass(frozen=True)
class Structure:
    """``draw(names, sorts, level, rng)`` gives facts in logical order and their order in the text;
    ``ask(facts, level)`` what is asked at a level and the facts it needs (None where nothing fits the level)."""

    draw: Callable[[tuple[str, ...], tuple[str, ...], int, random.Random], tuple[list[Fact], list[int]]]
    ask: Callable[[list[Fact], int], tuple[tuple[str, ...], list[int]] | None]


def draw(
    structure: str, topic: str, names: tuple[str, ...], sorts: tuple[str, ...], level: int, rng: random.Random
) -> Instance:
    """One instance of a structure, with items taken from ``names`` (and ``sorts`` for a selection)."""
    facts, order = STRUCTURES[structure].draw(names, sorts, level, rng)
    instance = _question(topic, structure, facts, order, level)
    if instance is None:
        raise InputError(f"draw: wanted a level of 1..{LEVELS} for {structure}; got {level}")
    return instance


def questions(instance: Instance) -> list[Instance]:
    """Every question of levels 1..5 that can be asked of the same facts in the same order.

    ``instance`` must be as drawn, without a fault.
    """
    facts = [instance.facts[place] for place in instance.places]
    order = sorted(range(len(facts)), key=instance.places.__getitem__)
    asked = (_question(instance.topic, instance.structure, facts, order, level) for level in range(1, LEVELS + 1))
    return [question for question in asked if question is not None]


def _question(topic: str, structure: str, facts: list[Fact], order: list[int], level: int) -> Instance | None:
    found = STRUCTURES[structure].ask(facts, level)
    if found is None:
        return None
    asked, used = found
    places = tuple(order.index(fact) for fact in range(len(facts)))
    if structure == "selection":
        used = sorted(used, key=places.__getitem__)
    return Instance(
        topic,
        structure,
        level,
        tuple(facts[fact] for fact in order),
        places,
        asked,
        tuple(places[fact] for fact in used),
        _steps([facts[fact] for fact in used]),
    )


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
    """A start and ``steps`` signed changes of 2..5, every running value within 1..LARGEST."""
    while True:
        start = rng.randint(2, 12)
        changes = [rng.choice((-1, 1)) * rng.randint(2, 5) for _ in range(steps)]
        if all(1 <= value <= LARGEST for value in itertools.accumulate(changes, initial=start)):
            return start, changes


def _draw_chain(
    names: tuple[str, ...], _sorts: tuple[str, ...], _level: int, rng: random.Random
) -> tuple[list[Fact], list[int]]:
    items = rng.sample(names, 6)
    start, changes = _walk(5, rng)
    facts = [Fact("value", items[0], "", start)]
    for place, change in enumerate(changes):
        facts.append(Fact("more" if change > 0 else "fewer", items[place + 1], items[place], abs(change)))
    return facts, list(range(6))


def _ask_chain(facts: list[Fact], level: int) -> tuple[tuple[str, ...], list[int]]:
    return (facts[level - 1].subject,), list(range(level))


def _draw_journey(
    names: tuple[str, ...], _sorts: tuple[str, ...], _level: int, rng: random.Random
) -> tuple[list[Fact], list[int]]:
    start, changes = _walk(6, rng)
    facts = [Fact("start", "", "", start)]
    for place, change in zip(rng.sample(names, 6), changes, strict=True):
        facts.append(Fact("gain" if change > 0 else "loss", place, "", abs(change)))
    return facts, list(range(7))


def _ask_journey(facts: list[Fact], level: int) -> tuple[tuple[str, ...], list[int]]:
    return (facts[level].subject,), list(range(level + 1))


def _draw_selection(
    names: tuple[str, ...], sorts: tuple[str, ...], level: int, rng: random.Random
) -> tuple[list[Fact], list[int]]:
    asked, left_out, third = rng.sample(sorts, 3)
    kinds = [asked] * level + [left_out] * (6 - level) + [third]
    items = rng.sample(names, 7)
    facts = [Fact("item", item, kind, rng.randint(2, 5)) for item, kind in zip(items, kinds, strict=True)]
    groups = [list(range(level)), list(range(level, 6)), [6]]
    return facts, [fact for group in rng.sample(groups, 3) for fact in rng.sample(group, len(group))]


def _ask_selection(facts: list[Fact], level: int) -> tuple[tuple[str, ...], list[int]] | None:
    """The sort with ``level`` items, and as the sort left out the other one of the two large ones."""
    first, second = facts[0].other, facts[5].other
    for asked, left_out in ((first, second), (second, first)):
        used = [place for place, fact in enumerate(facts) if fact.other == asked]
        if len(used) == level:
            return (asked, left_out), used
    return None


def _draw_nesting(
    names: tuple[str, ...], _sorts: tuple[str, ...], _level: int, rng: random.Random
) -> tuple[list[Fact], list[int]]:
    items = rng.sample(names, 7)
    while True:
        amounts = [2 if rng.random() < 0.7 else 3 for _ in range(6)]
        if list(itertools.accumulate(amounts[:5], lambda a, b: a * b))[-1] <= LARGEST_PRODUCT:
            break
    facts = [Fact("holds", items[place], items[place + 1], amounts[place]) for place in range(6)]
    return facts, list(range(6))


def _ask_nesting(facts: list[Fact], level: int) -> tuple[tuple[str, ...], list[int]]:
    return (facts[0].subject, facts[level - 1].other), list(range(level))


STRUCTURES: dict[str, Structure] = {
    "chain": Structure(_draw_chain, _ask_chain),
    "journey": Structure(_draw_journey, _ask_journey),
    "selection": Structure(_draw_selection, _ask_selection),
    "nesting": Structure(_draw_nesting, _ask_nesting),
}
