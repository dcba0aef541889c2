"""The tests of kernels and operations with the C++ code watched by AddressSanitizer and UBSan: `make sanitize`.

The module is compiled with both in a copy of the sources (build/sanitize). Python itself is not, so the runtime
of the sanitizer is loaded first. It stands behind malloc then, also behind that of torch: what a kernel reads or
writes past the end of a tensor is noticed. Leaks are not looked for: Python keeps memory until it ends.

First three bugs are planted: a select that writes one number too many, a pooling whose result has too little room,
and one that goes on with memory it gave back, which is not kept for later arrays here (csrc/cpu/spare_memory.h). A run
that does not notice each of them would prove nothing.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from tests.attacks.source_copy import GREEN, ROOT, SourceCopy

SANITIZERS = "address,undefined"
TESTS = ("tests/ops", "tests/kernels", "tests/nightly")
# these start compilers, which are not ours to watch
LEFT_OUT = (
    "tests/kernels/test_build.py",
    "tests/kernels/test_compile_ahead.py",
    "tests/kernels/test_cuda_logic.py",
    "tests/kernels/test_cuda_rows.py",
    "tests/kernels/test_cuda_threshold_logic.py",
    "tests/kernels/test_encode_cuda_glue.py",
    "tests/kernels/test_spare_memory.py",
)


@dataclass(frozen=True)
class Planted:
    """A bug, a test that runs into it, and what AddressSanitizer has to call it."""

    file: str
    old: str
    new: str
    test: str
    report: str


POOL = "csrc/cpu/segment_pool.cpp"
PLANTED = (
    Planted(
        "csrc/cpu/topk_select.cpp",
        "write(ranks_[i], state.keys[i]);",
        "write(ranks_[i] + 1, state.keys[i]);",
        "tests/kernels/test_native.py::test_every_width_and_k",
        "heap-buffer-overflow",
    ),
    Planted(
        POOL,
        "Array<float>(room)};",
        "Array<float>(room / 8)};",
        # in plain C++: vector stores under a mask are not watched
        "tests/kernels/test_pool_cpu.py::test_bits_are_those_of_the_reference[topk-sum-plain]",
        "heap-buffer-overflow",
    ),
    Planted(
        POOL,
        "    pooled.columns.cut(done);\n",
        "    int32_t* columns = pooled.columns.data();\n"
        "    pooled.columns = Array<int32_t>(done);\n"
        "    std::fill_n(columns, done, 0);\n",
        "tests/kernels/test_pool_cpu.py::test_waves",
        "heap-use-after-free",
    ),
)
REPORTS = ("AddressSanitizer", "runtime error:")
HOUR = 3600.0


def runtime() -> str:
    """The libraries to be loaded before Python: the sanitizer, and the C++ library whose exceptions it watches."""
    found = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    return " ".join(found)


def watched(copy: SourceCopy, arguments: list[str]) -> tuple[int, str]:
    return copy.test(
        arguments,
        timeout=HOUR,
        LD_PRELOAD=runtime(),
        ASAN_OPTIONS="detect_leaks=0:abort_on_error=1",
        UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1",
    )


def notices(copy: SourceCopy, bug: Planted) -> bool:
    """Whether the planted bug ends the run with the report it has to give."""
    text = copy.replace(bug.file, bug.old, bug.new)
    try:
        copy.build()
        status, said = watched(copy, ["-s", bug.test])
    finally:
        copy.restore(bug.file, text)
    return status != GREEN and f"AddressSanitizer: {bug.report}" in said


def main(arguments: list[str]) -> int:
    copy = SourceCopy(ROOT / "build" / "sanitize", SAERL_SANITIZE=SANITIZERS)
    for bug in PLANTED:
        if not notices(copy, bug):
            print(f"no report of the {bug.report} planted in {bug.file}: a verdict would mean nothing")
            return 2
        print(f"the {bug.report} planted in {bug.file} was noticed", flush=True)
    copy.build()
    left_out = [f"--ignore={path}" for path in LEFT_OUT]
    status, said = watched(copy, ["-s", "-rs", *left_out, *(arguments or TESTS)])
    print(said)
    return max(status, int(any(report in said for report in REPORTS)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
