"""Known faults of a problem, and harmless changes that look the same on the face.

A fault is recorded as quality truth. For each fault that can be seen in the text there is a decoy that uses the same
words without harm, so that no single word tells good from bad:

===================  ==========================================  =========================================
fault                what happens                                decoy (harmless, the row stays sound)
===================  ==========================================  =========================================
missing_number       a number the answer needs becomes "some"    the spare fact's number becomes "some"
contradiction        a needed fact is restated with another       a needed fact is restated with the same
                     number, in place of the spare fact          number, in place of the spare fact
wrong_key            the key is another number; text untouched   (none: the text says nothing)
===================  ==========================================  =========================================
"""

from __future__ import annotations

import random
from dataclasses import replace

from saerl_fast.demo.structures import AMOUNTS, Fact, Instance

DEFECTS = ("missing_number", "contradiction", "wrong_key")
DECOYS = ("spare_number", "restatement")


def apply(instance: Instance, change: str, rng: random.Random) -> Instance:
    """The instance with its facts changed by a fault or a decoy; the true answer (``steps``) is kept.

    ``""`` and ``"wrong_key"`` leave the facts alone.
    """
    if change == "missing_number":
        return _leave_out(instance, rng.choice(instance.needed))
    if change == "spare_number":
        return _leave_out(instance, instance.spare)
    if change in ("contradiction", "restatement"):
        return _restate(instance, change == "contradiction", rng)
    return instance


def wrong_key(instance: Instance, rng: random.Random) -> int:
    """A plausible wrong answer: near the true one, never equal to it, at least 1."""
    near = [instance.answer + shift for shift in (-3, -2, -1, 1, 2, 3)]
    return rng.choice([number for number in near if number >= 1])


def _leave_out(instance: Instance, position: int) -> Instance:
    facts = list(instance.facts)
    facts[position] = replace(facts[position], stated=False)
    return replace(instance, facts=tuple(facts))


def _restate(instance: Instance, otherwise: bool, rng: random.Random) -> Instance:
    """The spare fact becomes a second statement of a needed one (of the start, in a journey)."""
    position = 0 if instance.structure == "journey" else rng.choice(instance.needed)
    fact = instance.facts[position]
    amount = _another(fact, rng) if otherwise else fact.amount
    facts = list(instance.facts)
    facts[instance.spare] = replace(fact, amount=amount)
    return replace(instance, facts=tuple(facts))


def _another(fact: Fact, rng: random.Random) -> int:
    """Another amount from the range of this form of fact."""
    low, high = AMOUNTS[fact.form]
    return rng.choice([amount for amount in range(low, high + 1) if amount != fact.amount])
