"""Training rows: each question sees the facts and itself, and reads as a single problem would."""

import random

import pytest
import torch

from saerl_fast.demo.lessons import IGNORED, draw_lesson, pack
from saerl_fast.demo.policy import LONGEST_ANSWER
from saerl_fast.demo.problems import generate, generate_with_facts
from saerl_fast.demo.vocabulary import build_tokenizer
from saerl_fast.errors import InputError
from saerl_fast.rl.verify import is_correct

EOS = 1


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(count=3000)


def test_every_word_and_number_is_one_token(tokenizer) -> None:
    assert len(tokenizer) <= 1024
    assert tokenizer.tokenize("Ana has 12 marbles.") == ["Ġana", "Ġhas", "Ġ12", "Ġmarbles", "."]
    assert all(len(tokenizer.tokenize(str(number))) == 1 for number in range(100))
    assert tokenizer.tokenize("7 + 35 - 9 x 2") == ["Ġ7", "Ġ+", "Ġ35", "Ġ-", "Ġ9", "Ġx", "Ġ2"]
    for problem in generate(100, split="held_out"):
        assert len(tokenizer(problem.text)["input_ids"]) <= 110
        decoded = tokenizer.decode(tokenizer(problem.text)["input_ids"])
        assert decoded.strip() == problem.text.lower()


def test_any_text_can_be_read(tokenizer) -> None:
    for text in ("é ☃ 中", "x" * 500, "a\tb\n", "<EOS>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]).strip() == text.lower().strip()


def test_a_worked_answer_is_right_and_short(tokenizer) -> None:
    for problem, instance in generate_with_facts(500, defect_share=0.0):
        assert is_correct(instance.worked(), problem.answer)
        assert len(tokenizer(instance.worked())["input_ids"]) < LONGEST_ANSWER


def test_a_lesson_reads_like_its_problems(tokenizer) -> None:
    texts = []

    def encode(text: str) -> list[int]:
        texts.append(text)
        return list(tokenizer(text)["input_ids"])

    rng = random.Random(5)
    for _ in range(50):
        texts.clear()
        lesson = draw_lesson(rng, encode, EOS)
        facts = texts[-1]
        for (question, answer), said, worked in zip(lesson.questions, texts[:-1:2], texts[1:-1:2], strict=True):
            alone = tokenizer(f"{facts} {said}")["input_ids"]
            assert alone == lesson.facts + question
            assert answer == [*tokenizer(worked)["input_ids"], EOS]


def test_a_lesson_longer_than_a_row_is_refused(tokenizer) -> None:
    lesson = draw_lesson(random.Random(2), lambda text: tokenizer(text)["input_ids"], EOS)
    with pytest.raises(InputError, match="row"):
        pack([lesson], rows=2, width=len(lesson) - 1, pad=0)
    assert pack([lesson], rows=2, width=len(lesson), pad=0)[1] == []


def test_masks_and_positions_equal_separate_problems(tokenizer) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    rng = random.Random(3)
    lessons = [draw_lesson(rng, lambda text: tokenizer(text)["input_ids"], EOS) for _ in range(4)]
    batch, left = pack([lessons[0], *lessons], rows=2, width=400, pad=0)
    assert len(left) == 1
    packed_lessons = [lesson for lesson in [lessons[0], *lessons] if lesson is not left[0]]
    with torch.no_grad():
        packed = model(input_ids=batch.tokens, attention_mask=batch.visible, position_ids=batch.positions).logits
    filled = [0, 0]
    for lesson in packed_lessons:
        row = next(row for row in (0, 1) if filled[row] + len(lesson) <= 400)
        begin, place = filled[row], filled[row] + len(lesson.facts)
        assert batch.texts[row, begin : place - 1].tolist() == lesson.facts[1:]
        for question, answer in lesson.questions:
            with torch.no_grad():
                alone = model(input_ids=torch.tensor([lesson.facts + question + answer])).logits[0]
            end = place + len(question) + len(answer)
            expected = alone[len(lesson.facts) :]
            torch.testing.assert_close(packed[row, place:end], expected, atol=1e-4, rtol=1e-4)
            assert batch.answers[row, place + len(question) - 1 : end - 1].tolist() == answer
            place = end
        filled[row] = place
    answered = sum(len(answer) for lesson in packed_lessons for _, answer in lesson.questions)
    assert int((batch.answers != IGNORED).sum()) == answered
    assert int((batch.texts != IGNORED).sum()) == sum(len(lesson.facts) - 1 for lesson in packed_lessons)
