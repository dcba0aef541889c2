"""label: how often a policy solves each problem, from rollouts.

::

    DIR/  LOCK  manifest.json  chunks/00000.json ...  labels.jsonl

The manifest comes first and names the job by everything that changes a label. A chunk is the rows that are
completed at once; it is committed whole or not at all, so a run that was killed loses at most one.
labels.jsonl comes last.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saerl_fast import __version__
from saerl_fast.durable import digest, enter_manifest, read_object, sole_writer, write_once
from saerl_fast.errors import CorruptStoreError, FormatError, InputError
from saerl_fast.rl.problems import Problems, RowId, read_problems
from saerl_fast.rl.verifier import Verifier, find_verifier

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST, CHUNKS, LABELS = "manifest.json", "chunks", "labels.jsonl"
RIGHT = 0.5
"""A completion is right where the verifier's score is above this."""


@dataclass(frozen=True, slots=True)
class Label:
    """What the rollouts of one row say: ``correct`` of ``rollouts`` completions scored above 0.5."""

    id: RowId
    correct: int
    rollouts: int
    mean_score: float

    @property
    def pass_rate(self) -> float:
        return self.correct / self.rollouts

    def to_row(self) -> dict[str, Any]:
        """id, pass_rate, correct, rollouts, mean_score: a line of labels.jsonl."""
        return {
            "id": self.id,
            "pass_rate": self.pass_rate,
            "correct": self.correct,
            "rollouts": self.rollouts,
            "mean_score": self.mean_score,
        }


@dataclass(frozen=True)
class _Chosen:
    """The rows to label, longest prompt first, as places in the table and token ids."""

    places: list[int]
    prompts: list[list[int]]
    left_out: dict[str, int]


def label(
    rows: Sequence[Mapping[str, Any]],
    model: Any,
    tokenizer: Any = None,
    verifier: str | Callable[..., Any] | Verifier = "math",
    *,
    text_field: str = "problem",
    answer_field: str = "answer",
    id_field: str | None = None,
    count: int | None = None,
    ids: Iterable[RowId] | None = None,
    rollouts: int = 8,
    max_new_tokens: int = 512,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    out: str | os.PathLike[str] | None = None,
    source: Mapping[str, Any] | None = None,
    device: str | None = None,
    progress: bool = True,
) -> list[Label]:
    """Pass rates of ``rows`` under a policy: the share of ``rollouts`` completions that the verifier accepts.

    rows: tables rows as dictionaries. text_field holds a string, or a list of chat messages (then the chat
        template is applied, with the generation prompt); answer_field is given to the verifier as a string.
    model: a causal LM of transformers with its ``tokenizer``, or a folder or hub id, which brings its own.
    verifier: "math", "module:function", or a function: see ``saerl_fast.rl.verifier``.
    count: label this many rows, drawn at random by ``seed``; ids: label these; neither: all. Rows without
        text or answer, or too long for the model, are left out: logged, counted in the manifest, and an
        error where ``ids`` names them.
    temperature: 0 is greedy, with rollouts=1.
    batch_size: rows completed at once, batch_size * rollouts sequences.
    out: a folder; a run that was killed goes on there, a finished one is read. source: a note kept in it.

    Returns one Label per row, in the order of ``rows``. The same arguments give the same labels, killed in
    between or not. The global random state is neither read nor changed.

    Raises InputError, VerifierError, JobMismatchError (a folder of another job), NonFiniteError and the
    errors of the folder.
    """
    from saerl_fast.rl.rollout import Sampling, fingerprint_policy, load_policy

    sampling = Sampling(rollouts, max_new_tokens, float(temperature), seed)
    if type(batch_size) is not int or batch_size < 1:
        raise InputError(f"batch_size: wanted a whole number from 1 up; got {batch_size!r}")
    problems = read_problems(rows, text_field, answer_field, id_field)
    judge = find_verifier(verifier)
    if isinstance(model, (str, os.PathLike)):
        model, own = load_policy(os.fspath(model), device)
        tokenizer = own if tokenizer is None else tokenizer
    if tokenizer is None:
        raise InputError("a model object needs its tokenizer; only a path or an id brings its own")
    chosen = _choose(problems, model, tokenizer, sampling, count, ids)
    spans = [chosen.places[start : start + batch_size] for start in range(0, len(chosen.places), batch_size)]
    job = {
        **fingerprint_policy(model, tokenizer),
        **asdict(sampling),
        "batch_size": batch_size,
        "verifier": judge.name,
        "rows": [len(chosen.places), digest([problems.ids[place] for place in chosen.places])],
        "texts": digest([[problems.text(place), problems.rows[place][answer_field]] for place in chosen.places]),
        "saerl_fast": __version__,
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": job,
        "chunks": len(spans),
        "left_out": chosen.left_out,
        "source": dict(source or {}),
    }
    by_place = dict(zip(chosen.places, chosen.prompts, strict=True))

    def compute(span: Sequence[int]) -> list[Label]:
        return _label_chunk(problems, span, [by_place[place] for place in span], model, tokenizer, sampling, judge)

    found = _run(None if out is None else Path(out), manifest, spans, problems, compute, progress)
    place_of = {row_id: place for place, row_id in enumerate(problems.ids)}
    return sorted(found, key=lambda row: place_of[row.id])


def _choose(
    problems: Problems, model: Any, tokenizer: Any, sampling: Any, count: int | None, ids: Iterable[RowId] | None
) -> _Chosen:
    """Which rows, in the order in which they are labelled: longest first, so that memory runs out at once or never."""
    from saerl_fast.rl.rollout import encode_prompt, longest_context

    context = longest_context(model)
    room = None if context is None else context - sampling.max_new_tokens
    if room is not None and room < 1:
        raise InputError(f"max_new_tokens: {sampling.max_new_tokens} leave no prompt in a context of {context} tokens")
    wanted, needed = _candidates(problems, count, ids, sampling.seed)
    found: list[tuple[int, list[int]]] = []
    left_out: Counter[str] = Counter()
    for place in wanted:
        if count is not None and len(found) == count:
            break
        reason = problems.lacks(place)
        if reason is None:
            prompt = encode_prompt(tokenizer, problems.text(place))
            reason = "empty prompt" if not prompt else "too long" if room is not None and len(prompt) > room else None
        if reason is None:
            found.append((place, prompt))
            continue
        if needed:
            raise InputError(f"ids: row {problems.ids[place]!r} cannot be labelled: {reason}")
        left_out[reason] += 1
    if left_out:
        logger.warning("label: rows left out: %s", ", ".join(f"{n} {why}" for why, n in left_out.items()))
    if len(found) < (count or 1):
        raise InputError(f"label: wanted {count or 1} rows to label; only {len(found)} of {len(problems)} can be")
    found.sort(key=lambda pair: (-len(pair[1]), pair[0]))
    return _Chosen([place for place, _ in found], [prompt for _, prompt in found], dict(left_out))


def _candidates(
    problems: Problems, count: int | None, ids: Iterable[RowId] | None, seed: int
) -> tuple[list[int], bool]:
    """Places in the order in which they are taken, and whether each of them was asked for by name."""
    if ids is not None:
        if count is not None:
            raise InputError("give count or ids, not both")
        place_of = {row_id: place for place, row_id in enumerate(problems.ids)}
        names = list(dict.fromkeys(ids))
        unknown = [row_id for row_id in names if row_id not in place_of]
        if unknown:
            raise InputError(f"ids: {len(unknown)} are not in the table: {unknown[:5]}")
        return [place_of[row_id] for row_id in names], True
    if count is None:
        return list(range(len(problems))), False
    if type(count) is not int or count < 1:
        raise InputError(f"count: wanted a whole number from 1 up; got {count!r}")
    return np.random.default_rng([seed, len(problems)]).permutation(len(problems)).tolist(), False


def _label_chunk(
    problems: Problems,
    places: Sequence[int],
    prompts: Sequence[Sequence[int]],
    model: Any,
    tokenizer: Any,
    sampling: Any,
    verifier: Verifier,
) -> list[Label]:
    from saerl_fast.rl.rollout import generate

    row_ids = [problems.ids[place] for place in places]
    labels = []
    completions = generate(model, tokenizer, prompts, row_ids, sampling)
    for place, row_id, texts in zip(places, row_ids, completions, strict=True):
        scores = [verifier.score(text, problems.rows[place], problems.answer_field, row_id) for text in texts]
        right = sum(score > RIGHT for score in scores)
        labels.append(Label(row_id, right, len(scores), sum(scores) / len(scores)))
    return labels


def _run(
    folder: Path | None,
    manifest: dict[str, Any],
    spans: Sequence[Sequence[int]],
    problems: Problems,
    compute: Callable[[Sequence[int]], list[Label]],
    progress: bool,
) -> list[Label]:
    """Every chunk, computed or read back."""
    from tqdm.auto import tqdm

    total = sum(len(span) for span in spans)
    found: list[Label] = []
    with tqdm(total=total, desc="label", unit="row", disable=not progress) as bar, _writer(folder, manifest):
        job = digest(manifest["fingerprint"])
        for number, span in enumerate(spans):
            path = None if folder is None else folder / CHUNKS / f"{number:05d}.json"
            if path is not None and path.exists():
                part = _read_chunk(path, job, [problems.ids[place] for place in span])
            else:
                part = compute(span)
                if path is not None:
                    _write_chunk(path, job, part)
            found.extend(part)
            bar.update(len(span))
            bar.set_postfix(passed=f"{sum(row.pass_rate for row in found) / len(found):.3f}")
        if folder is not None and not (folder / LABELS).exists():
            place_of = {row_id: place for place, row_id in enumerate(problems.ids)}
            lines = [json.dumps(row.to_row()) for row in sorted(found, key=lambda row: place_of[row.id])]
            write_once(folder / LABELS, ("\n".join(lines) + "\n").encode())
    return found


@contextmanager
def _writer(folder: Path | None, manifest: dict[str, Any]) -> Iterator[None]:
    if folder is None:
        yield
        return
    with sole_writer(folder):
        (folder / CHUNKS).mkdir(exist_ok=True)
        enter_manifest(folder / MANIFEST, manifest)
        yield


def _write_chunk(path: Path, job: str, labels: Sequence[Label]) -> None:
    content = {"job": job, "labels": [row.to_row() for row in labels]}
    write_once(path, json.dumps({**content, "sha256": digest(content)}).encode())


def _read_chunk(path: Path, job: str, row_ids: Sequence[RowId]) -> list[Label]:
    found = read_object(path)
    content = {"job": found.get("job"), "labels": found.get("labels")}
    if digest(content) != found.get("sha256"):
        raise CorruptStoreError(f"{path}: content does not match its SHA-256; delete the file and run again")
    if found["job"] != job:
        raise CorruptStoreError(f"{path}: a chunk of another job; delete the file and run again")
    labels = [_read_label(row, str(path)) for row in found["labels"]]
    if [row.id for row in labels] != list(row_ids):
        raise CorruptStoreError(f"{path}: holds other rows than this chunk; delete the file and run again")
    return labels


def _read_label(row: Any, where: str) -> Label:
    wanted = {"id": (str, int), "correct": (int,), "rollouts": (int,), "mean_score": (float, int)}
    for name, kinds in wanted.items():
        if not isinstance(row, dict) or type(row.get(name)) not in kinds:
            raise FormatError(f"{where}: wanted {name} as {kinds[0].__name__} in {row!r:.120}")
    if not 0 <= row["correct"] <= row["rollouts"] or row["rollouts"] < 1:
        raise FormatError(f"{where}: wanted 0 <= correct <= rollouts, rollouts >= 1 in {row!r:.120}")
    return Label(row["id"], row["correct"], row["rollouts"], float(row["mean_score"]))


def read_labels(path: str | os.PathLike[str]) -> list[Label]:
    """The labels of a folder that ``label`` wrote, or of a labels.jsonl. Raises FormatError for any other file."""
    file = Path(path)
    file = file / LABELS if file.is_dir() else file
    if not file.is_file():
        raise FormatError(f"{file}: no such file; a run that was killed has none until it is started again and ends")
    labels = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{file}, line {number}: not JSON: {error}") from error
        labels.append(_read_label(row, f"{file}, line {number}"))
    return labels


def difficulty_column(labels: Sequence[Label], ids: Iterable[RowId]) -> list[float | None]:
    """1 - pass rate for each of ``ids``, None where it has no label: the difficulty that ``steer`` takes."""
    known = {row.id: 1.0 - row.pass_rate for row in labels}
    return [known.get(row_id) for row_id in ids]
