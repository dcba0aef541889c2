"""The tests of kernels and operations with the C++ code watched by AddressSanitizer and UBSan: `make sanitize`.

The module is compiled with both in a copy of the sources (build/sanitize). Python itself is not, so the runtime
of the sanitizer is loaded first. It stands behind malloc then, also behind that of torch: what a kernel reads or
writes past the end of a tensor is noticed. Leaks are not looked for: Python keeps memory until it ends.

First a kernel that writes one number too many is planted; a run that does not notice it would prove nothing.
"""

from __future__ import annotations

import subprocess
import sys

from tests.attacks.source_copy import GREEN, ROOT, SourceCopy

SANITIZERS = "address,undefined"
TESTS = ("tests/ops", "tests/kernels", "tests/nightly")
# these two start compilers, which are not ours to watch
LEFT_OUT = ("tests/kernels/test_build.py", "tests/kernels/test_cuda_logic.py")
PLANTED = (
    "csrc/cpu/topk_select.cpp",
    "if (ranks_[i] < k_) write(ranks_[i], state.keys[i]);",
    "if (ranks_[i] <= k_) write(ranks_[i], state.keys[i]);",
)
PLANTED_TEST = "tests/kernels/test_native.py::test_every_width_and_k"
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


def notices_a_planted_bug(copy: SourceCopy) -> bool:
    """Whether one number written past the end of a tensor ends the run with a report."""
    file, old, new = PLANTED
    text = copy.replace(file, old, new)
    try:
        copy.build()
        status, said = watched(copy, ["-s", PLANTED_TEST])
    finally:
        copy.restore(file, text)
    return status != GREEN and "AddressSanitizer: heap-buffer-overflow" in said


def main(arguments: list[str]) -> int:
    copy = SourceCopy(ROOT / "build" / "sanitize", SAERL_SANITIZE=SANITIZERS)
    if not notices_a_planted_bug(copy):
        print("the sanitizers do not notice a planted overflow: their verdict would mean nothing")
        return 2
    print("a planted overflow was noticed")
    copy.build()
    left_out = [f"--ignore={path}" for path in LEFT_OUT]
    status, said = watched(copy, ["-s", "-rs", *left_out, *(arguments or TESTS)])
    print(said)
    return max(status, int(any(report in said for report in REPORTS)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
