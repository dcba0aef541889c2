"""The readers of files from elsewhere against structured nonsense: a named error or a result, each within a second."""

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from saerl_fast.errors import SaerlError
from tests.attacks.fuzzed_readers import READERS
from tests.nightly.sizes import daily_and_nightly

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def place(tmp_path):
    """A folder that is quick to write to."""
    if not os.access(SHARED_MEMORY, os.W_OK):
        yield tmp_path / "f"
        return
    folder = SHARED_MEMORY / f"saerl-{os.getpid()}-{tmp_path.name}"
    yield folder / "f"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("name", READERS)
@daily_and_nightly("inputs", 600, 100_000)
def test_a_named_error_or_a_result(place, name, inputs, record_property):
    reader = READERS[name](place)
    generator, refused, slowest = random.Random(inputs), 0, 0.0
    for number in range(inputs):
        start = time.process_time()
        try:
            reader.throw(generator)
        except SaerlError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"input {number} of seed {inputs}: not a named error") from error
        slowest = max(slowest, time.process_time() - start)
    assert refused > inputs / 3
    assert slowest < 1
    record_property("inputs", inputs)
    record_property("refused", refused)
