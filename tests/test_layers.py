"""The rooms import only from rooms below them, and nothing in the package does what its laws forbid."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "saerl_fast"
FILES = sorted(PACKAGE.rglob("*.py"))

# from the bottom up; rooms on one line do not import each other
LAYERS = [
    ["errors"],
    ["codes", "durable", "kinds"],
    ["kernels"],
    ["ops"],
    ["sae", "features"],
    ["formats"],
    ["extract"],
    ["featurizer", "sae_trainer", "accelerated"],
    ["signals"],
    ["steer"],
    ["curriculum"],
    ["rl"],
    ["report"],
    ["env"],
    ["demo"],
    ["bench"],
    ["cli"],
]
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
# SparseFeatures.load goes through the strict reader, and sae-lens files become an SAE: one level apart each way
ALLOWED = {("features", "formats")}
FORBIDDEN_CALLS = {"torch.load", "torch.save", "eval", "exec", "yaml.load", "os.system", "pickle.loads", "pickle.load"}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "joblib"}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "saerl_fast":
                yield from (f"saerl_fast.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_below_it(path):
    room = room_of(path)
    if room == "__init__":
        pytest.skip("the front door names every room, lazily")
    assert room in HEIGHT, f"{room} has no place in the order of rooms"
    for name in imports_of(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "saerl_fast" or len(parts) < 2 or parts[1] in (room, "__version__", "_native"):
            continue
        below = HEIGHT[parts[1]] < HEIGHT[room]
        assert below or (room, parts[1]) in ALLOWED, f"{room} imports {name}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_forbidden_calls_and_modules(path):
    tree = ast.parse(path.read_text())
    assert not FORBIDDEN_MODULES & {name.split(".")[0] for name in imports_of(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in FORBIDDEN_CALLS, f"line {node.lineno}: {called}"
            for keyword in node.keywords:
                on = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                assert not (keyword.arg in ("trust_remote_code", "allow_pickle", "shell") and on), node.lineno
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: assert in the package"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sizes_that_keep_it_readable(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 60, f"{node.name} has {lines} lines"


def test_no_float_atomics_in_the_kernels():
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix in {".cpp", ".cu", ".h", ".cuh"}:
            assert not re.search(r"atomicAdd\s*\(\s*\(?\s*float", path.read_text()), path


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    heavy = ["torch", "numpy", "sklearn", "transformers", "sae_lens", "trl", "datasets", "scipy", "triton"]
    assert run(f"import sys, saerl_fast; print([m for m in {heavy} if m in sys.modules])") == "[]"
    assert run("import sys, saerl_fast, threading; print(threading.active_count())") == "1"


def test_help_answers_without_anything_heavy():
    code = (
        "import sys\nfrom saerl_fast.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    )
    assert run(code).splitlines()[-1] == "[]"


def test_every_public_name_is_found():
    import saerl_fast

    for name in saerl_fast.__all__:
        assert getattr(saerl_fast, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        saerl_fast.nonsense


def test_no_module_shadows_a_public_function():
    # importing a submodule sets it as an attribute of the package, over a function of the same name
    code = (
        "import importlib, pkgutil, saerl_fast\n"
        "for found in pkgutil.iter_modules(saerl_fast.__path__):\n"
        "    if found.name != '_native': importlib.import_module('saerl_fast.' + found.name)\n"
        "print(callable(saerl_fast.featurize), callable(saerl_fast.make_plan), callable(saerl_fast.accelerate))"
    )
    assert run(code) == "True True True"
