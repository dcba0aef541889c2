"""Builds the compiled module saerl_fast._native from csrc/. Everything else is in pyproject.toml.

SAERL_BUILD=auto  what the machine allows: C++ where there is a compiler, CUDA where there is nvcc (default)
SAERL_BUILD=cpu   C++ only; fails where it cannot be built
SAERL_BUILD=cuda  C++ and CUDA; fails where they cannot be built
SAERL_BUILD=none  nothing; the package runs on its reference implementations
SAERL_SANITIZE=address,undefined   the C++ code checks itself while it runs (make sanitize)

Needs neither torch nor a GPU. What was built, or why not, is written to saerl_fast/_build.json, which
`saerl env` shows.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, SetupError

PACKAGE = Path("saerl_fast")
RECORD = "_build.json"
MODES = ("auto", "cpu", "cuda", "none")
X86 = platform.machine() in ("x86_64", "AMD64")

# no -march: the instruction set is chosen when the program runs. Only the files whose names end so may use a
# newer one. Without contraction they give the same bits where they do the same operations.
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
FLAGS_BY_ENDING = {
    "_avx2": ["-mavx2", "-mfma"] if X86 else [],
    # gcc 12 warns about its own intrinsics
    "_avx512": ["-mavx512f", "-Wno-maybe-uninitialized", "-Wno-uninitialized"] if X86 else [],
}
SANITIZERS = os.environ.get("SAERL_SANITIZE", "")
# all errors end the process: one that is only printed would leave the tests green
SANITIZE_FLAGS = [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all", "-O1", "-g", "-fno-omit-frame-pointer"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
CUDA_TARGETS = ("80", "90", "100")


class Missing(Exception):
    """Something the build needs is not there."""


@dataclass(frozen=True)
class Step:
    """One command that makes one file."""

    rule: str
    inputs: list[Path]
    output: Path
    command: list[str]


def find_compiler() -> str:
    """The C++ compiler, with what else compiling needs; raises Missing."""
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        if found := shutil.which(name):
            break
    else:
        raise Missing(f"no C++ compiler found ({named or 'c++, g++, clang++'})")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        raise Missing(f"{header} not found; install Python's development files (python3-dev)")
    try:
        import pybind11  # noqa: F401
    except ImportError:
        raise Missing("pybind11 is not installed, and the build is not isolated") from None
    return found


def find_nvcc() -> str:
    """The CUDA compiler; raises Missing."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("nvcc") or shutil.which(str(Path(home) / "bin" / "nvcc"))
    if found is None:
        raise Missing(f"nvcc not found (PATH, {home}/bin)")
    return found


def openmp_flags(cxx: str) -> list[str]:
    """-fopenmp where the compiler takes it; without it the kernels run on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        command = [cxx, "-fopenmp", str(source), "-o", str(Path(folder) / "probe")]
        works = subprocess.run(command, capture_output=True, check=False).returncode == 0
    return ["-fopenmp"] if works else ["-Wno-unknown-pragmas"]


def cuda_targets(nvcc: str) -> list[str]:
    """The GPU generations to compile for: those of CUDA_TARGETS that nvcc knows, and PTX for newer ones."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    known = [target for target in CUDA_TARGETS if f"sm_{target}" in listed.split()]
    return [f"arch=compute_{t},code=sm_{t}" for t in known] + [f"arch=compute_{known[-1]},code=compute_{known[-1]}"]


def first_line(command: list[str], pattern: str = "") -> str:
    """The first line of a program's answer that holds `pattern`."""
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return next((line for line in lines if re.search(pattern, line)), "unknown version")


def plan(cxx: str, nvcc: str | None, objects: Path, module: Path) -> list[Step]:
    """All commands, the linking last."""
    import pybind11

    openmp = openmp_flags(cxx)
    include = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    define = ["-DSAERL_CUDA"] if nvcc else []
    checks = SANITIZE_FLAGS if SANITIZERS else []
    steps = []
    for source in sorted([*Path("csrc").glob("*.cpp"), *Path("csrc/cpu").glob("*.cpp")]):
        output = objects / (source.stem + ".o")
        special = next((more for ending, more in FLAGS_BY_ENDING.items() if source.stem.endswith(ending)), [])
        flags = [*CXX_FLAGS, *openmp, *special, *define, *include, *checks]
        command = [cxx, *flags, "-MMD", "-MF", f"{output}.d", "-c", str(source), "-o", str(output)]
        steps.append(Step("cxx", [source], output, command))
    for source in sorted(Path("csrc/cuda").glob("*.cu")) if nvcc else []:
        output = objects / (source.stem + ".cu.o")
        flags = [*NVCC_FLAGS, "-ccbin", cxx, *(f"-gencode={target}" for target in cuda_targets(nvcc))]
        command = [nvcc, *flags, "-MMD", "-MF", f"{output}.d", "-c", str(source), "-o", str(output)]
        steps.append(Step("nvcc", [source], output, command))
    made = [step.output for step in steps]
    link = [nvcc, "-ccbin", cxx, "-cudart", "static", "-shared"] if nvcc else [cxx, "-shared"]
    link += ["-Xcompiler", *openmp] if nvcc else openmp
    link += [] if nvcc else checks
    link += ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    steps.append(Step("link", made, module, [*link, *map(str, made), "-o", str(module)]))
    return steps


def execute(steps: list[Step], objects: Path) -> None:
    """Run the steps, with ninja (in parallel, only what changed) where there is one; raises CompileError."""
    objects.mkdir(parents=True, exist_ok=True)
    steps[-1].output.parent.mkdir(parents=True, exist_ok=True)
    ninja = shutil.which("ninja")
    if ninja is None:
        commands = [step.command for step in steps]
    else:
        script = objects / "build.ninja"
        script.write_text(ninja_script(steps))
        commands = [[ninja, "-f", str(script)]]
    for command in commands:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if run.returncode == 0 and "warning:" in run.stdout:
            say(f"the compiler warns:\n{run.stdout}")
        if run.returncode != 0:
            say(f"this command failed: {shlex.join(command)}\n{run.stdout}")
            errors = [line for line in run.stdout.splitlines() if "error:" in line]
            raise CompileError(errors[0] if errors else f"{command[0]} ended with {run.returncode}")


def ninja_script(steps: list[Step]) -> str:
    """The steps as a build.ninja."""

    def escaped(text: str) -> str:
        return text.replace("$", "$$").replace(":", "$:").replace(" ", "$ ")

    lines = [f"builddir = {escaped(str(steps[0].output.parent))}"]
    lines += ["rule link", "  command = $line", "  description = link $out"]
    for rule in ("cxx", "nvcc"):
        lines += [f"rule {rule}", "  command = $line", f"  description = {rule} $in"]
        lines += ["  depfile = $out.d", "  deps = gcc"]
    for step in steps:
        inputs = " ".join(escaped(str(path)) for path in step.inputs)
        lines.append(f"build {escaped(str(step.output))}: {step.rule} {inputs}")
        lines.append("  line = " + shlex.join(step.command).replace("$", "$$"))
    return "\n".join(lines) + "\n"


def empty_record(mode: str) -> dict[str, object]:
    """What _build.json says: the compilers of what was built, the reason for what was not."""
    return {"mode": mode, "native": None, "reason": None, "cuda": None, "cuda_reason": None}


def build(mode: str, objects: Path, module: Path) -> dict[str, object]:
    """Build what the mode asks for and the machine allows; returns the record for _build.json."""
    record = empty_record(mode)
    try:
        cxx = find_compiler()
    except Missing as missing:
        return without_native(mode, record, str(missing))
    nvcc = None
    try:
        nvcc = find_nvcc() if mode != "cpu" else None
        record["cuda_reason"] = "built with SAERL_BUILD=cpu" if mode == "cpu" else None
    except Missing as missing:
        without_cuda(mode, record, str(missing))
    if nvcc:
        try:
            execute(plan(cxx, nvcc, objects, module), objects)
        except CompileError as failure:
            without_cuda(mode, record, f"the CUDA build failed: {failure}")
            nvcc = None
    if not nvcc:
        try:
            execute(plan(cxx, None, objects, module), objects)
        except CompileError as failure:
            return without_native(mode, record, f"the C++ build failed: {failure}")
    record["native"] = first_line([cxx, "--version"])
    if nvcc:
        targets = [target.split("code=")[1] for target in cuda_targets(nvcc)]
        record["cuda"] = f"{first_line([nvcc, '--version'], 'release')} for {', '.join(targets)}"
    return record


def without_cuda(mode: str, record: dict[str, object], reason: str) -> None:
    """Note that there will be no CUDA kernels; an error where they were asked for."""
    if mode == "cuda":
        raise SetupError(f"SAERL_BUILD=cuda, but {reason}")
    say(f"building without CUDA kernels: {reason}")
    record["cuda_reason"] = reason


def without_native(mode: str, record: dict[str, object], reason: str) -> dict[str, object]:
    """Note that there will be no compiled module; an error where it was asked for."""
    if mode in ("cpu", "cuda"):
        raise SetupError(f"SAERL_BUILD={mode}, but {reason}")
    if mode == "auto":
        say(f"installing without the compiled module, so CPU kernels run as plain PyTorch, slower: {reason}")
    return {**record, "reason": reason, "cuda_reason": record["cuda_reason"] or reason}


def say(text: str) -> None:
    print(f"saerl_fast: {text}", file=sys.stderr, flush=True)


def write_record(record: dict[str, object], package: Path) -> None:
    package.mkdir(parents=True, exist_ok=True)
    (package / RECORD).write_text(json.dumps(record, indent=1) + "\n")


def remove_stale_modules() -> None:
    """Modules that an earlier editable install left beside the sources."""
    for stale in PACKAGE.glob("_native.*.so"):
        stale.unlink()


class BuildNative(build_ext):
    """Compiles with our own commands in place of distutils'."""

    def build_extension(self, extension: Extension) -> None:
        module = Path(self.get_ext_fullpath(extension.name))
        module.unlink(missing_ok=True)
        write_record(build(MODE, Path(self.build_temp) / "csrc", module), module.parent)

    def copy_extensions_to_source(self) -> None:
        """For an editable install: the module and the record beside the sources, and no stale module."""
        remove_stale_modules()
        shutil.copyfile(Path(self.build_lib) / PACKAGE / RECORD, PACKAGE / RECORD)
        super().copy_extensions_to_source()


class BuildPackage(build_py):
    """Writes the record where nothing is compiled."""

    def run(self) -> None:
        super().run()
        if MODE == "none":
            record = without_native(MODE, empty_record(MODE), "built with SAERL_BUILD=none")
            if self.editable_mode:
                remove_stale_modules()
            write_record(record, PACKAGE if self.editable_mode else Path(self.build_lib) / PACKAGE)


MODE = os.environ.get("SAERL_BUILD", "auto")
if MODE not in MODES:
    raise SetupError(f"SAERL_BUILD must be one of {', '.join(MODES)}; got {MODE!r}")

setup(
    # `optional` lets the installation go on where the module could not be built
    ext_modules=[] if MODE == "none" else [Extension("saerl_fast._native", [], optional=MODE == "auto")],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPackage},
)
