"""Signals from sparse features: clusters, predicted difficulty, predicted quality, each with an honest score."""

from saerl_fast.signals.difficulty import DifficultyProxy
from saerl_fast.signals.held_out import NearChanceWarning
from saerl_fast.signals.kmeans import StreamingKMeans
from saerl_fast.signals.projection import FeatureProjection
from saerl_fast.signals.quality import QualityProbe

__all__ = ["DifficultyProxy", "FeatureProjection", "NearChanceWarning", "QualityProbe", "StreamingKMeans"]
