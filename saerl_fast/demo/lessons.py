"""Training rows for the policy: one set of facts, then every question that can be asked of it, each with its answer.

The questions stand one after another in one row, but each sees only the facts and itself (a block mask), and its
positions go on from the facts. So a row teaches up to five levels for the price of one reading of the facts, and the
policy still meets the same positions as in a single problem.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saerl_fast.demo.problems import split_of
from saerl_fast.demo.structures import LEVELS, Instance, draw, questions
from saerl_fast.demo.wording import TOPICS, say

Encode = Callable[[str], list[int]]

IGNORED = -100


@dataclass(frozen=True)
class Lesson:
    """Tokens of the facts, and of each question with its answer (which ends in the end-of-text token)."""

    facts: list[int]
    questions: list[tuple[list[int], list[int]]]

    def __len__(self) -> int:
        return len(self.facts) + sum(len(question) + len(answer) for question, answer in self.questions)


@dataclass(frozen=True)
class LessonBatch:
    """tokens, positions, targets [B, T] int64 (target of a position: the next token, IGNORED outside answers);
    visible [B, 1, T, T] bool."""

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    visible: Tensor


def draw_lesson(
    rng: random.Random, encode: Encode, eos: int, *, worked_share: float, deepest: int = LEVELS, short: bool = False
) -> Lesson:
    """A lesson about facts of the train split; each answer is worked with probability ``worked_share``, else plain.

    No level above ``deepest`` is asked. ``short`` leaves out the facts that no question of the lesson needs: easier
    and cheaper texts, for the beginning of the training.
    """
    instance = _draw_train_instance(rng, deepest)
    wording = rng.getrandbits(64)
    asked = [question for question in questions(instance) if question.level <= deepest]
    if short:
        asked = _shorten(asked)
    texts = [say(question, random.Random(wording)) for question in asked]
    end_of_facts = texts[0].rindex(". ") + 1
    pairs = []
    for question, text in zip(asked, texts, strict=True):
        answer = question.worked() if rng.random() < worked_share else str(question.answer)
        pairs.append((encode(text[end_of_facts + 1 :]), [*encode(answer), eos]))
    return Lesson(encode(texts[0][:end_of_facts]), pairs)


def _shorten(asked: list[Instance]) -> list[Instance]:
    """The same questions about only those facts that one of them needs."""
    kept = sorted({place for question in asked for place in question.needed})
    return [
        replace(
            question,
            facts=tuple(question.facts[place] for place in kept),
            needed=tuple(kept.index(place) for place in question.needed),
        )
        for question in asked
    ]


def _draw_train_instance(rng: random.Random, deepest: int) -> Instance:
    while True:
        topic = rng.choice(list(TOPICS.values()))
        level = rng.randint(1, deepest)
        instance = draw(topic.structure, topic.name, topic.names, topic.sorts, level, rng)
        if split_of(instance) == "train":
            return instance


def collate(lessons: list[Lesson], *, pad: int, multiple: int = 32) -> LessonBatch:
    """Lessons as one batch, padded to a multiple of ``multiple`` tokens (few shapes, for a compiled model)."""
    rows, width = len(lessons), -(-max(len(lesson) for lesson in lessons) // multiple) * multiple
    tokens = torch.full((rows, width), pad)
    positions = torch.zeros((rows, width), dtype=torch.int64)
    targets = torch.full((rows, width), IGNORED)
    parts = torch.full((rows, width), -1)
    for row, lesson in enumerate(lessons):
        known = len(lesson.facts)
        tokens[row, :known] = torch.tensor(lesson.facts)
        positions[row, :known] = torch.arange(known)
        parts[row, :known] = 0
        place = known
        for part, (question, answer) in enumerate(lesson.questions, start=1):
            end = place + len(question) + len(answer)
            tokens[row, place:end] = torch.tensor(question + answer)
            positions[row, place:end] = torch.arange(known, known + end - place)
            parts[row, place:end] = part
            targets[row, place + len(question) - 1 : end - 1] = torch.tensor(answer)
            place = end
    return LessonBatch(tokens, positions, targets, _visible(parts))


def _visible(parts: Tensor) -> Tensor:
    """Earlier positions of the same part, and the facts (part 0) for every question; padding sees itself."""
    width = parts.shape[1]
    same = parts[:, :, None] == parts[:, None, :]
    facts = (parts[:, :, None] > 0) & (parts[:, None, :] == 0)
    earlier = torch.ones(width, width, dtype=torch.bool).tril()
    return ((same | facts) & earlier)[:, None]
