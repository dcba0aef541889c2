"""The sources in a folder of their own: changed, built and tested there, so that the real ones stay as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt")
FOLDERS = ("csrc", "saerl_fast", "tests", "benchmarks")
MADE = (".so", ".pyc")
GREEN, RED = 0, 1
"""What pytest ends with when all tests passed, and when some failed. Anything else is a broken run."""


class SourceCopy:
    """A folder that is made equal to the sources; what was compiled in it stays, so that the next build is quick."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder.resolve()
        # ninja may lie beside this Python: with it only what changed is compiled
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        # no bytecode: Python tells a stale one by second and size, and a changed file may have both of the old one
        self.environment = {
            **os.environ,
            "PATH": path,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(self.folder),
            **environment,
        }
        wanted = set(_sources())
        for relative in wanted:
            self._copy(relative)
        for folder_name in FOLDERS:
            for found in (self.folder / folder_name).rglob("*"):
                if found.is_file() and found.suffix not in MADE and found.relative_to(self.folder) not in wanted:
                    found.unlink()

    def _copy(self, relative: Path) -> None:
        content, target = (ROOT / relative).read_bytes(), self.folder / relative
        if not target.exists() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    def replace(self, file: str, old: str, new: str) -> str:
        """Replace the one place where `old` stands; returns the text that was there before."""
        path = self.folder / file
        text = path.read_text()
        if text.count(old) != 1:
            raise LookupError(f"{file}: wanted one place with {old!r}; got {text.count(old)}. The code has moved on")
        path.write_text(text.replace(old, new))
        return text

    def restore(self, file: str, text: str) -> None:
        (self.folder / file).write_text(text)

    def build(self) -> None:
        """Compile in place; RuntimeError with the compiler's words where it fails."""
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        run = subprocess.run(
            command, cwd=self.folder, env=self.environment | {"SAERL_BUILD": "cpu"}, capture_output=True, text=True
        )
        if run.returncode != 0:
            raise RuntimeError(f"the build failed:\n{run.stdout}\n{run.stderr}")

    def test(self, arguments: Sequence[str], timeout: float, **environment: str) -> tuple[int, str]:
        """Run pytest; its exit status and what it said. subprocess.TimeoutExpired where it takes too long."""
        command = [sys.executable, "-m", "pytest", "-x", "--no-header", "--tb=line", *arguments]
        run = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return run.returncode, run.stdout


def _sources() -> Iterator[Path]:
    for name in FILES:
        if (ROOT / name).exists():
            yield Path(name)
    for name in FOLDERS:
        for path in (ROOT / name).rglob("*"):
            made = path.suffix in MADE or path.name == "_build.json"
            if path.is_file() and not made and "__pycache__" not in path.parts:
                yield path.relative_to(ROOT)
