"""Verifiable maths problems whose difficulty and quality are known and hidden.

Eight topics, five levels, a train and a held-out split that share no set of facts, and a known share of faulty
problems. Everything is a function of (seed, split, index): problem ``i`` is the same however many are asked for.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from saerl_fast.demo.defects import DECOYS, DEFECTS, apply, wrong_key
from saerl_fast.demo.structures import LEVELS, Instance, draw
from saerl_fast.demo.wording import TOPICS, say
from saerl_fast.errors import InputError

SPLITS = ("train", "held_out")
DEFECT_SHARE = 0.12
"""Share of faulty problems, in equal parts of each kind; each decoy is as frequent as one kind."""


@dataclass(frozen=True)
class Problem:
    """One problem as a user sees it (``text``, ``answer``) with its truth (``topic``, ``level``, ``defect``).

    ``text`` is the whole prompt. ``answer`` is the key, a whole number in digits. ``level`` is 1 (easy) to 5.
    ``defect`` is "" for a sound problem, else "missing_number", "contradiction" or "wrong_key".
    """

    id: str
    text: str
    answer: str
    topic: str
    level: int
    defect: str


def generate(
    count: int, *, split: str = "train", seed: int = 0, defect_share: float = DEFECT_SHARE, start: int = 0
) -> list[Problem]:
    """Problems ``start .. start + count - 1`` of a split.

    Raises InputError for an unknown split, a negative count or start, or a share outside 0..1/2.
    """
    return [
        problem
        for problem, _ in generate_with_facts(count, split=split, seed=seed, defect_share=defect_share, start=start)
    ]


def generate_with_facts(
    count: int, *, split: str = "train", seed: int = 0, defect_share: float = DEFECT_SHARE, start: int = 0
) -> Iterator[tuple[Problem, Instance]]:
    """As ``generate``, each problem with the facts behind its text (after the fault, with the true ``steps``)."""
    if split not in SPLITS:
        raise InputError(f"generate: wanted a split of {SPLITS}; got {split!r}")
    if count < 0 or start < 0:
        raise InputError(f"generate: wanted count >= 0 and start >= 0; got {count} and {start}")
    if not 0.0 <= defect_share <= 0.5:
        raise InputError(f"generate: wanted defect_share within 0..0.5; got {defect_share}")
    return (_problem(index, split, seed, defect_share) for index in range(start, start + count))


def _problem(index: int, split: str, seed: int, defect_share: float) -> tuple[Problem, Instance]:
    rng = random.Random(f"saerl_fast.demo:{seed}:{split}:{index}")
    topic = rng.choice(list(TOPICS.values()))
    level = rng.randint(1, LEVELS)
    instance = draw(topic.structure, topic.name, topic.names, level, rng)
    while split_of(instance) != split:
        instance = draw(topic.structure, topic.name, topic.names, level, rng)
    change = _draw_change(defect_share, rng)
    instance = apply(instance, change, rng)
    key = wrong_key(instance, rng) if change == "wrong_key" else instance.answer
    defect = change if change in DEFECTS else ""
    text = say(instance, rng)
    return Problem(f"{split}-{seed}-{index}", text, str(key), topic.name, level, defect), instance


def split_of(instance: Instance) -> str:
    """One set of facts in five is held out, whatever the seed, the wording or the question."""
    digest = hashlib.sha256(instance.key().encode()).digest()
    return SPLITS[1] if digest[0] % 5 == 0 else SPLITS[0]


def _draw_change(defect_share: float, rng: random.Random) -> str:
    """A fault with probability ``defect_share``, each decoy as likely as each kind of fault, else ""."""
    point = rng.random() * len(DEFECTS)
    for change in (*DEFECTS, *DECOYS):
        if point < defect_share:
            return change
        point -= defect_share
    return ""
