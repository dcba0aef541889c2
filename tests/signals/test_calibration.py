"""calibration: bins by hand, ties in one bin, few rows in few bins."""

import numpy as np
import pytest

from saerl_fast.signals.calibration import calibration


def test_bins_by_hand():
    found = calibration(np.array([4.0, 1.0, 2.0, 3.0] * 5), np.array([8.0, 0.0, 2.0, 6.0] * 5), bins=2)
    assert found["n"] == [10, 10]
    assert found["predicted"] == [1.5, 3.5]
    assert found["observed"] == [1.0, 7.0]
    assert found["standard_error"] == pytest.approx([np.sqrt(10 / 9) / np.sqrt(10)] * 2, abs=1e-5)


def test_equal_predictions_share_a_bin():
    assert calibration(np.zeros(100), np.arange(100.0))["n"] == [100]
    predicted = np.repeat([0.0, 1.0], [90, 10])
    found = calibration(predicted, predicted)
    assert (found["n"], found["predicted"]) == ([90, 10], [0, 1])


def test_ten_bins_of_like_size_and_fewer_for_few_rows():
    rng = np.random.default_rng(0)
    predicted = rng.standard_normal(1003)
    assert sorted(set(calibration(predicted, predicted)["n"])) == [100, 101]
    assert len(calibration(predicted[:12], predicted[:12])["n"]) == 2
    one = calibration(predicted[:1], predicted[:1])
    assert (one["n"], one["standard_error"]) == ([1], [None])
