"""Training rows for the policy: one set of facts, then every question that can be asked of it, each with its answer.

The questions stand one after another behind the facts, but each sees only the facts and itself (a block mask), and
its positions go on from the facts. So a lesson teaches up to five levels for the price of one reading of the facts, and
the policy still meets the same positions as in a single problem. Several lessons share a row, each blind to the others.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saerl_fast.demo.problems import split_of
from saerl_fast.demo.structures import Instance, draw, questions
from saerl_fast.demo.wording import TOPICS, say
from saerl_fast.errors import InputError

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
    """tokens, positions [B, T] int64; answers, texts [B, T] int64: the next token of a position where it belongs to an
    answer or to the facts, else IGNORED; visible [B, 1, T, T] bool."""

    tokens: Tensor
    positions: Tensor
    answers: Tensor
    texts: Tensor
    visible: Tensor


def draw_lesson(rng: random.Random, encode: Encode, eos: int) -> Lesson:
    """A lesson about facts of the train split, with worked answers."""
    asked = questions(_draw_train_instance(rng))
    wording = rng.getrandbits(64)
    texts = [say(question, random.Random(wording)) for question in asked]
    end_of_facts = texts[0].rindex(". ") + 1
    pairs = []
    for question, text in zip(asked, texts, strict=True):
        pairs.append((encode(text[end_of_facts + 1 :]), [*encode(question.worked()), eos]))
    return Lesson(encode(texts[0][:end_of_facts]), pairs)


def _draw_train_instance(rng: random.Random) -> Instance:
    while True:
        topic = rng.choice(list(TOPICS.values()))
        instance = draw(topic.structure, topic.name, topic.names, 1, rng)
        if split_of(instance) == "train":
            return instance


def pack(lessons: list[Lesson], *, rows: int, width: int, pad: int) -> tuple[LessonBatch, list[Lesson]]:
    """As many lessons as fit into [rows, width], each in the first row with room, and those that did not fit.

    Raises InputError for a lesson that no row can hold.
    """
    longest = max(map(len, lessons), default=0)
    if longest > width:
        raise InputError(f"pack: wanted lessons of at most {width} tokens, a row; got one of {longest}")
    tokens = torch.full((rows, width), pad)
    positions = torch.zeros((rows, width), dtype=torch.int64)
    answers, texts = torch.full((rows, width), IGNORED), torch.full((rows, width), IGNORED)
    parts, owners = torch.full((rows, width), -1), torch.full((rows, width), -1)
    filled, left = [0] * rows, []
    part = 0
    for lesson in lessons:
        row = next((row for row in range(rows) if filled[row] + len(lesson) <= width), None)
        if row is None:
            left.append(lesson)
            continue
        begin, known = filled[row], len(lesson.facts)
        place = begin + known
        tokens[row, begin:place] = torch.tensor(lesson.facts)
        positions[row, begin:place] = torch.arange(known)
        texts[row, begin : place - 1] = tokens[row, begin + 1 : place]
        parts[row, begin:place] = owner = part
        for question, answer in lesson.questions:
            part += 1
            end = place + len(question) + len(answer)
            tokens[row, place:end] = torch.tensor(question + answer)
            positions[row, place:end] = torch.arange(known, known + end - place)
            answers[row, place + len(question) - 1 : end - 1] = torch.tensor(answer)
            parts[row, place:end] = part
            place = end
        owners[row, begin:place] = owner
        filled[row], part = place, part + 1
    return LessonBatch(tokens, positions, answers, texts, _visible(parts, owners)), left


def _visible(parts: Tensor, owners: Tensor) -> Tensor:
    """Earlier positions of the same part and of the facts it belongs to; padding sees padding."""
    same = parts[:, :, None] == parts[:, None, :]
    facts = owners[:, :, None] == parts[:, None, :]
    earlier = torch.ones(parts.shape[1], parts.shape[1], dtype=torch.bool).tril()
    return ((same | facts) & earlier)[:, None]
