"""The memory that freed arrays leave to later ones, compiled alone and watched (spare_memory/check.cpp)."""

import subprocess
from pathlib import Path

import pytest

from tests.kernels.emulated import COMPILER

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "csrc" / "cpu"
CHECK = Path(__file__).parent / "spare_memory" / "check.cpp"
WRAPPED = "-Wl,--wrap=malloc,--wrap=free"

pytestmark = pytest.mark.skipif(COMPILER is None or not SOURCES.exists(), reason="needs a C++ compiler and csrc/")


def compiled(folder, *flags):
    program = folder / "check"
    sources = [str(CHECK), str(SOURCES / "spare_memory.cpp")]
    command = [COMPILER, "-std=c++17", "-O1", "-g", "-pthread", f"-I{SOURCES}", *flags, *sources, "-o", str(program)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode and flags[0] != WRAPPED and "cannot find" in made.stderr:
        pytest.skip(f"the compiler has no runtime for {flags[0]}")
    assert made.returncode == 0, made.stderr
    return program


def said(program, check):
    done = subprocess.run([str(program), check], capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("plain"), WRAPPED)


@pytest.mark.parametrize("check", ["sizes", "threads", "forks"])
def test_memory_is_kept_and_never_handed_out_while_in_use(program, check):
    assert said(program, check) == (0, "all so\n")


def test_threads_do_not_race(tmp_path):
    """ThreadSanitizer understands this file: it locks by an atomic, not by OpenMP."""
    assert said(compiled(tmp_path, "-fsanitize=thread", WRAPPED), "threads") == (0, "all so\n")


def test_nothing_is_kept_where_address_sanitizer_watches(tmp_path):
    """Otherwise `make sanitize` would not see a kernel that goes on with memory it gave back."""
    watched = compiled(tmp_path, "-fsanitize=address", WRAPPED)
    status, report = said(watched, "touch_what_was_given_back")
    assert status != 0
    assert "AddressSanitizer: heap-use-after-free" in report
