"""featurize: texts in, one sparse SAE row per text out.

It reads and checks what it was given and names the job; every shard is then computed, or read back where a folder
holds it already (extract/run.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from saerl_fast.errors import InputError
from saerl_fast.extract.arguments import ARGUMENTS, LongTexts, Pool
from saerl_fast.extract.asked import asked
from saerl_fast.extract.compiling import CompileWish
from saerl_fast.extract.conversation import PoolOver
from saerl_fast.extract.inputs import check_ids, columns_of, dataset_ids, read_texts
from saerl_fast.extract.job import WHOLE, Job, Part
from saerl_fast.extract.learning import Learner, feed
from saerl_fast.extract.loading import DeviceMap, default_device
from saerl_fast.extract.packing import Wish
from saerl_fast.extract.reader import make_reader
from saerl_fast.extract.run import (
    EachShard,
    Finished,
    Task,
    Teach,
    check_out,
    compute_features,
    find_finished,
    write_features,
)
from saerl_fast.extract.settings import SHARD_ROWS, Request, job_fingerprint, name_contents, settle
from saerl_fast.extract.tokens import Text, check_texts, refuse_long
from saerl_fast.features import SparseFeatures
from saerl_fast.formats import as_sae
from saerl_fast.kinds import check_arguments
from saerl_fast.sae import SAE

if TYPE_CHECKING:
    import datasets


def featurize(
    texts: Sequence[Text] | datasets.Dataset,
    model: nn.Module | str | os.PathLike[str],
    sae: SAE | str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    layer: int | None = None,
    hook: str | None = None,
    pool: Pool = "mean",
    max_length: int | None = None,
    text_field: str | None = None,
    completion_field: str | None = None,
    out: str | os.PathLike[str] | None = None,
    part: tuple[int, int] | None = None,
    keep_hidden: bool = False,
    include_special: bool = False,
    pool_over: PoolOver = "all",
    skip_first: int = 0,
    long_texts: LongTexts = "truncate",
    window_stride: int | None = None,
    ids: Sequence[str | int] | None = None,
    columns: Sequence[dict[str, Any]] | None = None,
    source: dict[str, Any] | None = None,
    tokens_per_batch: int | None = None,
    shard_rows: int = SHARD_ROWS,
    padding_side: Literal["right", "left"] = "right",
    packing: Wish = "auto",
    compile: CompileWish = "auto",
    kmeans: Learner | None = None,
    each_shard: EachShard | None = None,
    device: torch.device | str | None = None,
    device_map: DeviceMap | None = None,
    dtype: torch.dtype | str | None = None,
    on_nonfinite: Literal["raise", "mark"] = "raise",
    progress: bool = True,
) -> SparseFeatures:
    """One sparse row of SAE features per text, read off a model's hidden states.

    texts: strings, conversations (lists of {"role", "content"}; the chat template is applied and only
        the contents are pooled), pairs {"prompt", "completion"} of either, or a ``datasets.Dataset`` with
        ``text_field`` (and ``completion_field``). None and empty texts keep their row, marked in ``status``.
    model: a Hugging Face causal LM or encoder (then ``tokenizer`` is needed), a folder, or a hub id
        (then only the layers needed are loaded and the tokenizer comes with it).
    sae: an SAE, the folder of one (``load_sae`` has the formats), RELEASE/SAE_ID of sae-lens, or an SAE object of
        sae-lens.
    layer: the block whose output is read, counted from 0; default: the hook in the SAE's metadata.
    hook: the place to read, where it is no block's output: a sae-lens name (blocks.3.hook_mlp_out) or a module path.
    pool: mean | max | sum | last | count over the tokens of the text. BOS, EOS, CLS, SEP and padding are
        never pooled (unless include_special, which leaves out only padding); the mean divides by the
        tokens kept. Values are float32 and untransformed.
    pool_over: all of a text, its "prompt" (the completion is not read), its "completion" (the prompt is read, not
        pooled; of a conversation, the closing message of the assistant), or its "last_user" message.
    skip_first: read so many tokens at the beginning, special ones among them, without pooling them.
    max_length: a text may have min(model, SAE context size, max_length) tokens.
    long_texts: "truncate" cuts longer ones, "window" reads them in windows that are pooled as one text, a new one
        every window_stride tokens (extract/windows.py has the definition); both mark them in ``status``. "error"
        refuses them before anything is computed.
    out: a folder to write, shard by shard; a run that was killed continues there, a finished one is read.
    part: (i, n) computes every n-th shard from the i-th on, counted from 0, into a folder of its own inside ``out``,
        and returns those rows; ``merge_parts(out)`` joins the shares of all workers.
    keep_hidden: also keep the mean hidden state over the same tokens, float32 [S, D].
    ids: one unique id per text; default the dataset's column ``id`` where it names every row once, else 0, 1, 2 ...
    columns, source: kept in the folder beside the rows; columns is one dict a text.
    tokens_per_batch: tokens of one forward pass, padding included; default 1,024 on a CPU, 32,768 on CUDA.
    shard_rows: rows per shard; texts are put into batches inside a shard only.
    packing: "on" lays the texts of a batch end to end in one row, each attending to itself, so that none is padded;
        "off" pads texts of like length; "auto" packs on CUDA where the model and the kernels installed allow it. The
        choice and its reason are in a line of log, the choice in the provenance (``layout``).
    compile: "on" has torch.compile make one graph of a block, for all blocks below the hook and texts of any length,
        "off" runs the blocks as they are; "auto" compiles where a measurement shows that it pays, which is nowhere so
        far. It changes bits; the choice is in the provenance (``forward``), a model that cannot be compiled is an
        InputError with the reason.
    kmeans: a ``StreamingKMeans``, which learns from the usable rows of each shard, in order, as `partial_fit` would:
        on the device, where they still are, as work queued before the next shard that nobody waits for. On a resumed
        run it learns from the shards read back too. It is changed when everything has gone well, and only then. The
        first shard must hold n_clusters different rows.
    each_shard: called with the rows of each shard as soon as they are there, in order; on a resumed run also with
        those read back.
    device, dtype: where a model given by path goes, and in what ("bfloat16", torch.bfloat16; "auto": the checkpoint's);
        default CUDA where there is one, in the checkpoint's dtype, else the CPU in float32. device_map: over several
        devices, as transformers takes it (needs accelerate).
    on_nonfinite: what to do with a row that holds NaN or infinity: raise, or mark it and leave it empty.

    Returns SparseFeatures with S = len(texts) rows in the order of the texts.

    Raises InputError, DtypeError (an argument of another kind, before anything is loaded), ModelMismatchError,
    UnsafeFileError, NonFiniteError, and the errors of the store.
    Warns (MismatchWarning) where the SAE was made for another model.
    """
    given = locals()
    settings = {field.name: given[field.name] for field in fields(Request)}
    rest = {name: value for name, value in given.items() if name not in settings and name != "texts"}
    check_arguments(rest, ARGUMENTS)
    if out is None and part is not None:
        raise InputError("part=(i, n) computes a share of a job into a folder; pass out=DIR too")
    if out is not None:
        check_out(out)
    request = Request(**settings)
    if out is None:
        task = make_task(texts, model, sae, request)
        with _teaching(kmeans, task, model, request) as teach:
            return compute_features(task, teach=teach, each_shard=each_shard, progress=progress)
    share = WHOLE if part is None else Part(*part)
    found = find_task(texts, model, sae, request, out, share)
    parts: list[SparseFeatures] = []

    def keep(rows: SparseFeatures) -> None:
        parts.append(rows)
        if each_shard is not None:
            each_shard(rows)

    with _teaching(kmeans, found, model, request) as teach:
        write_features(found, out, part=share, teach=teach, each_shard=keep, progress=progress)
    if not parts:
        raise InputError(f"share {part} of {found.job.shards} shards is empty; take fewer shares")
    return SparseFeatures.concatenate(parts)


@contextmanager
def _teaching(learner: Learner | None, task: Task | Finished, model: Any, request: Request) -> Iterator[Teach | None]:
    """Who is to learn from each shard, where the rows are made."""
    if learner is None:
        yield None
        return
    if isinstance(task, Task):
        device = task.reader.device
    else:  # where they were made is not written down
        device = next(model.parameters()).device if isinstance(model, nn.Module) else default_device(request.device)
    with learner.learning(task.n_features) as learn:
        yield lambda features, entries: feed(learn, features, entries, device)


@dataclass(frozen=True)
class _Given:
    """What was handed in, read and named; no model is loaded yet."""

    texts: Sequence[Text]
    ids: Sequence[str | int]
    columns: bytes | None
    sae: SAE
    contents: dict[str, Any]


def make_task(
    texts: Sequence[Text] | datasets.Dataset,
    model: nn.Module | str | os.PathLike[str],
    sae: SAE | str | os.PathLike[str],
    request: Request,
) -> Task:
    """What ``featurize`` was asked to do, checked and named, for ``compute_features``; the errors are its own."""
    return _with_model(_read(texts, model, sae, request), model, request, None)


def find_task(
    texts: Sequence[Text] | datasets.Dataset,
    model: nn.Module | str | os.PathLike[str],
    sae: SAE | str | os.PathLike[str],
    request: Request,
    out: str | os.PathLike[str],
    part: Part = WHOLE,
) -> Task | Finished:
    """The same for ``write_features`` into ``out``, which keeps the rows of one shard in memory instead of all.

    Where the folder is finished and was asked for in the same words, no model is loaded.
    """
    given = _read(texts, model, sae, request)
    words = asked(model, given.sae, request, given.contents)
    return find_finished(out, part, words, given.columns, given.sae.d_sae) or _with_model(given, model, request, words)


def _read(texts: Any, model: Any, sae: Any, request: Request) -> _Given:
    check_arguments({"model": model, "sae": sae}, ARGUMENTS)
    rows = read_texts(texts, request.text_field, request.completion_field)
    check_texts(rows, request.pool_over)
    ids = check_ids(dataset_ids(texts) if request.ids is None else request.ids, len(rows))
    lines = columns_of(request.columns, len(rows))
    found = as_sae(sae)
    return _Given(rows, ids, lines, found, name_contents(found, rows, ids, lines))


def _with_model(given: _Given, model: Any, request: Request, words: str | None) -> Task:
    """The task, its model loaded. words: what was asked, to be kept with the job."""
    reader = make_reader(
        model,
        given.sae,
        tokenizer=request.tokenizer,
        layer=request.layer,
        hook=request.hook,
        device=request.device,
        dtype=request.dtype,
        device_map=request.device_map,
    )
    sae = given.sae.to(reader.device)
    settings = settle(request, reader, sae)
    if request.long_texts == "error":
        refuse_long(given.texts, given.ids, reader.tokenizer, settings.limit, request.pool_over)
    fingerprint = job_fingerprint(reader, settings, given.contents)
    source = dict(request.source or {})
    if settings.forward.asked:
        source["forward"] = f"{settings.forward.name}: {settings.forward.reason}"
    job = Job(len(given.texts), request.shard_rows, fingerprint, source, words)
    return Task(job, given.texts, given.ids, given.columns, reader, sae, settings)
