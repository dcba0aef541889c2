"""The bugs that `make mutate` plants: slips that real projects have made, each with the tests that must see it.

Every `old` stands in its file once; where the code moves on, the seed has to move with it (test_seeds.py).
"""

from __future__ import annotations

from dataclasses import dataclass

ENCODE_PY = "saerl_fast/kernels/topk_cpu.py"
SELECT_CPP = "csrc/cpu/topk_select.cpp"
SPECIAL_VALUES = "tests/ops/test_special_values.py"
FEATURIZE_TESTS = "tests/test_featurize.py"


@dataclass(frozen=True)
class Edit:
    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Seed:
    """A bug: what is changed, and where it must show."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


def seed(name: str, tests: str, *changes: tuple[str, str, str]) -> Seed:
    return Seed(name, tuple(Edit(*change) for change in changes), tuple(tests.split()))


SEEDS = (
    # ---- kernels, C++
    seed(
        "row offset in 32 bits",
        "tests/nightly/test_far_offsets.py",
        (
            SELECT_CPP,
            "block.scores + row * block.row_stride;",
            "block.scores + static_cast<int32_t>(row * block.row_stride);",
        ),
    ),
    seed(
        "ties go to the higher index",
        SPECIAL_VALUES,
        (
            "csrc/cpu/row_loops.h",
            "(first - static_cast<uint32_t>(hits.columns[i]))",
            "static_cast<uint32_t>(first_column + hits.columns[i])",
        ),
        (SELECT_CPP, "0xFFFFFFFFu - static_cast<uint32_t>(key)", "static_cast<uint32_t>(key)"),
    ),
    seed(
        "k - 1 kept",
        "tests/kernels/test_native.py",
        (
            "csrc/cpu/row_loops.h",
            "move_best(keys, count, kth, k - above);",
            "move_best(keys, count, kth, k - above - 1);",
        ),
    ),
    seed(
        "candidates cut off where their buffer is full",
        "tests/kernels/test_native.py",
        (
            SELECT_CPP,
            "if (state.held > capacity(k_) - Hits::kRoom) cut_back(state);",
            "if (state.held > capacity(k_) - Hits::kRoom) state.held = capacity(k_) - Hits::kRoom;",
        ),
    ),
    seed(
        "ReLU forgotten",
        SPECIAL_VALUES,
        (SELECT_CPP, "values[place] = relu && !(value > 0) ? 0.0f : value;", "values[place] = value;"),
    ),
    seed(
        "low bits of a value lost to its index",
        "tests/kernels/test_native.py",
        (SELECT_CPP, "static_cast<uint32_t>(key >> 32);", "static_cast<uint32_t>(key >> 32) & ~0xFFFu;"),
    ),
    seed(
        "absent lanes of the last vector count as zero",
        "tests/kernels/test_native.py",
        (
            "csrc/cpu/row_kernels_avx2.cpp",
            "_mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), value,",
            "_mm256_blendv_ps(_mm256_setzero_ps(), value,",
        ),
    ),
    seed(
        "scratch shared between calls",
        "tests/ops/test_op_table.py tests/ops/test_processes.py",
        (
            SELECT_CPP,
            "        RowSelect select(k_, kernels_);\n        for (int64_t row = begin; row < end; ++row) {\n            if",
            "        static RowSelect select(k_, kernels_);\n"
            "        for (int64_t row = begin; row < end; ++row) {\n            if",
        ),
    ),
    seed(
        "a row leaves its sums to the next",
        "tests/kernels/test_pool_cpu.py",
        ("csrc/cpu/sparse_kernels_avx2.cpp", "_mm256_storeu_ps(sums + j, _mm256_setzero_ps());", ""),
    ),
    seed(
        "NaN gets label 0",
        "tests/kernels/test_kmeans_cpu.py",
        ("csrc/cpu/nearest.h", 'return nan ? __builtin_nanf("") : distance;', "return distance;"),
    ),
    seed(
        "scores equal to their threshold kept after screening",
        "tests/kernels/test_threshold_int8.py::test_equal_is_not_above",
        ("csrc/cpu/screened_threshold.cpp", "scores[n] > bound_[column] &&", "scores[n] >= bound_[column] &&"),
    ),
    seed(
        "survivors of the screening cut off at their limit",
        "tests/kernels/test_threshold_int8.py tests/kernels/test_topk_int8.py",
        ("csrc/cpu/screening.cpp", "row.whole = row.count > limit_;", "row.count = std::min(row.count, limit_);"),
    ),
    seed(
        "a likely floor believed without proof",
        "tests/kernels/test_topk_int8.py",
        ("csrc/cpu/screened_topk.cpp", "columns_seen_ && proved < row.floor;", "columns_seen_ && false;"),
    ),
    seed(
        "float32 scores taken for exact",
        "tests/kernels/test_topk_int8.py tests/kernels/test_threshold_int8.py",
        ("csrc/cpu/screen_loops.h", "d.reach[j] * d.size;", "0 * d.reach[j] * d.size;"),
    ),
    seed(
        "memory kept and handed out twice",
        "tests/kernels/test_spare_memory.py tests/kernels/test_pool_cpu.py",
        ("csrc/cpu/spare_memory.cpp", "return std::exchange(spare, Memory{});", "return spare;"),
    ),
    # ---- kernels, Python
    seed(
        "b_dec added instead of subtracted",
        "tests/ops/test_op_table.py",
        (ENCODE_PY, "centred = centred - b_dec.float()", "centred = centred + b_dec.float()"),
    ),
    seed(
        "activations rounded to bfloat16 on the way",
        "tests/nightly/test_sets.py",
        (ENCODE_PY, "x[row_index[rows]]).float()", "x[row_index[rows]]).bfloat16().float()"),
    ),
    seed(
        "last partial batch dropped",
        "tests/ops/test_op_table.py",
        (ENCODE_PY, "range(0, n_rows, tokens)", "range(0, n_rows - tokens + 1, tokens)"),
    ),
    seed(
        "float32 products in lower precision",
        "tests/ops/test_exactness.py",
        ("saerl_fast/kernels/precision.py", 'settings.fp32_precision = "ieee"', "pass"),
    ),
    seed(
        "prepared weights known by their address alone",
        "tests/kernels/test_int8_weights.py",
        ("saerl_fast/kernels/int8_weights.py", ", w_enc.dtype, fingerprint(w_enc))", ", w_enc.dtype)"),
    ),
    seed(
        "bound without the rounding of the weights",
        "tests/nightly/test_certificate.py",
        (
            "saerl_fast/kernels/int8_screening.py",
            "torch.where(fits, w.errors * size, 0).float(),",
            "torch.zeros_like(size).float(),",
        ),
    ),
    seed(
        "a forked child waits for threads that are not there",
        "tests/nightly/test_forks.py",
        ("saerl_fast/kernels/fork.py", "    if os.getpid() == _process:\n", "    if _process:\n"),
    ),
    seed(
        "gradient of a latent kept twice overwritten, not summed",
        "tests/ops/test_library.py tests/kernels/test_decode_cpu.py",
        (
            "saerl_fast/kernels/decode_cpu.py",
            "    return summed(starts, row[order].contiguous(), values[order].contiguous(), x, None, isa)",
            "    out = torch.zeros(n_latents, x.shape[1])\n"
            "    out[columns.long()] = values[:, None] * x[row.long()]\n"
            "    return out",
        ),
    ),
    seed(
        "gradient of b_dec left out",
        "tests/kernels/test_decode_cpu.py",
        ("saerl_fast/kernels/decode_cpu.py", "decode_column_sums(grad) if wanted[4] else None", "None"),
    ),
    seed(
        "partial sums, one for each thread",
        "tests/nightly/test_one_hash.py",
        (
            "saerl_fast/kernels/decode_cpu.py",
            "return kmeans_cpu.update(grad, torch.zeros(len(grad), dtype=torch.int32), 1, grad.shape[1])[0].reshape(-1)",
            "return torch.stack([part.sum(dim=0) for part in grad.chunk(native.threads())]).sum(dim=0)",
        ),
    ),
    # ---- the road
    seed(
        "padding pooled",
        "tests/extract/test_tokens.py",
        ("saerl_fast/extract/batching.py", "pooled[row, span] = text.pooled", "pooled[row] = True"),
    ),
    seed(
        "order of rows lost after batching by length",
        FEATURIZE_TESTS,
        (
            "saerl_fast/extract/shard.py",
            'return as_run, np.argsort(order, kind="stable")',
            "return as_run, np.arange(len(order))",
        ),
    ),
    seed(
        "hook left behind after an error",
        FEATURIZE_TESTS,
        ("saerl_fast/extract/capture.py", "if self._handle is not None:\n", "if self._handle and kind is None:\n"),
    ),
    seed(
        "last partial shard dropped",
        "tests/extract/test_store.py",
        (
            "saerl_fast/extract/job.py",
            "return -(-self.rows // self.shard_rows)",
            "return self.rows // self.shard_rows",
        ),
    ),
    seed(
        "no sync before a file gets its name",
        "tests/attacks/test_commit_order.py",
        ("saerl_fast/durable.py", "        os.fsync(file)\n", ""),
    ),
    seed(
        "a shard replaces one that is there",
        "tests/extract/test_store.py",
        ("saerl_fast/durable.py", "_write(path, content, _name_once)", "_write(path, content, os.replace)"),
    ),
    seed(
        "job without its batch size",
        "tests/attacks/test_job_settings.py",
        ("saerl_fast/extract/settings.py", '        "tokens_per_batch": settings.tokens_per_batch,\n', ""),
    ),
    seed(
        "stream before a block taken for the one behind it",
        "tests/extract/test_hooks.py",
        ("saerl_fast/extract/hooks.py", "layer=hook.layer - 1)", "layer=hook.layer)"),
    ),
    seed(
        "last block read behind the final norm",
        "tests/extract/test_hooks.py",
        (
            "saerl_fast/extract/hooks.py",
            '    if hook.point in ("resid_pre", "resid_post"):\n',
            "    norm = getattr(text_model(model), 'norm', None)\n"
            "    if hook.point == 'resid_post' and hook.layer == len(blocks) - 1 and norm is not None:\n"
            "        return norm, 'output'\n"
            '    if hook.point in ("resid_pre", "resid_post"):\n',
        ),
    ),
    seed(
        "packed texts see their neighbours",
        "tests/extract/test_packing.py",
        (
            "saerl_fast/extract/attention.py",
            "for length in packing.lengths:\n",
            "for length in (sum(packing.lengths),):\n",
        ),
    ),
    seed(
        "a screened label believed without its bound",
        "tests/kernels/test_nearest_screened.py",
        (
            "saerl_fast/kernels/nearest_triton.py",
            "return next - least > 2 * WIDER * bound",
            "return next - least > 0 * WIDER * bound",
        ),
    ),
    seed(
        "steep rows left to the tensor cores",
        "tests/kernels/test_input_norm.py",
        (
            "saerl_fast/kernels/encode_triton.py",
            "self._launch(rows, scores, groups, self._norms.steep[rows].amax(dim=0, keepdim=True))",
            "pass",
        ),
    ),
    seed(
        "packing without its self-check",
        "tests/extract/test_packing.py",
        ("saerl_fast/extract/packing.py", " or _check(reader, kernel, limit)", ""),
    ),
    seed(
        "smaller batches not recorded",
        "tests/extract/test_backoff.py",
        ("saerl_fast/extract/run.py", "store.write_split(shard, found.batches)", "pass"),
    ),
    seed(
        "smaller batches recorded and not taken again",
        "tests/extract/test_backoff.py",
        (
            "saerl_fast/extract/run.py",
            "task.compute(shard, read, bar.update, store.split(shard), not judged)",
            "task.compute(shard, read, bar.update, None, not judged)",
        ),
    ),
    seed(
        "what repair finds deleted, not put aside",
        "tests/extract/test_inspect.py",
        (
            "saerl_fast/extract/inspect.py",
            "set_aside(finding.path, folder / QUARANTINE) if",
            "finding.path.unlink() if",
        ),
    ),
    seed(
        "bounds of rows compared by differences that wrap",
        "tests/test_features.py",
        (
            "saerl_fast/features.py",
            "(self.indptr[1:] < self.indptr[:-1]).any()",
            "(np.diff(self.indptr) < 0).any()",
        ),
    ),
    seed(
        "the header is read from one opening, the data from another",
        "tests/test_features.py",
        (
            "saerl_fast/features.py",
            "header, tensors = read_file(path)",
            "header, tensors = read_file(path)[0], read_file(path)[1]",
        ),
    ),
    # ---- k-means
    seed(
        "empty clusters left where they are",
        "tests/signals/test_kmeans.py",
        ("saerl_fast/signals/lloyd.py", "_fill(empty, rows,", "_fill(empty[:0], rows,"),
    ),
    seed(
        "directions learnt from the first rows",
        "tests/signals/test_projection.py",
        (
            "saerl_fast/signals/projection.py",
            "np.sort(rng.choice(n_rows, most, replace=False))",
            "np.arange(most)",
        ),
    ),
    seed(
        "global generator seeded",
        "tests/signals/test_contract.py::TestAll",
        (
            "saerl_fast/signals/seeding.py",
            "    if len(rows) < n_clusters:\n        raise",
            "    np.random.seed(0)\n    if len(rows) < n_clusters:\n        raise",
        ),
    ),
)
