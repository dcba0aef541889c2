"""saerl_fast: steer RL post-training by what a model's own activations say about its data.

The road runs from text to plan::

    features = saerl_fast.featurize(texts, model="Qwen/Qwen2.5-1.5B", sae="path/to/sae")
    clusters = saerl_fast.StreamingKMeans(n_clusters=16).fit_predict(features.to_scipy())
    plan = saerl_fast.make_plan(features.ids, clusters=clusters, prompts_per_step=16)

Importing this package imports neither torch nor anything else that is heavy: each name below is
loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "accelerate": "saerl_fast.accelerated",
    "featurize": "saerl_fast.featurizer",
    "SparseFeatures": "saerl_fast.features",
    "SAE": "saerl_fast.sae",
    "load_sae": "saerl_fast.formats",
    "save_sae": "saerl_fast.formats",
    "load_features": "saerl_fast.extract.store",
    "read_shards": "saerl_fast.extract.store",
    "StreamingKMeans": "saerl_fast.signals",
    "DifficultyProxy": "saerl_fast.signals",
    "FeatureProjection": "saerl_fast.signals",
    "QualityProbe": "saerl_fast.signals",
    "BatchPlan": "saerl_fast.curriculum",
    "make_plan": "saerl_fast.curriculum",
    "train_sae": "saerl_fast.sae_trainer",
    "ops": "saerl_fast.ops",
    "errors": "saerl_fast.errors",
}

__all__ = [
    "SAE",
    "BatchPlan",
    "DifficultyProxy",
    "FeatureProjection",
    "QualityProbe",
    "SparseFeatures",
    "StreamingKMeans",
    "__version__",
    "accelerate",
    "errors",
    "featurize",
    "load_features",
    "load_sae",
    "make_plan",
    "ops",
    "read_shards",
    "save_sae",
    "train_sae",
]

if TYPE_CHECKING:
    from saerl_fast import errors, ops
    from saerl_fast.accelerated import accelerate
    from saerl_fast.curriculum import BatchPlan, make_plan
    from saerl_fast.extract.store import load_features, read_shards
    from saerl_fast.features import SparseFeatures
    from saerl_fast.featurizer import featurize
    from saerl_fast.formats import load_sae, save_sae
    from saerl_fast.sae import SAE
    from saerl_fast.sae_trainer import train_sae
    from saerl_fast.signals import DifficultyProxy, FeatureProjection, QualityProbe, StreamingKMeans


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'saerl_fast' has no attribute {name!r}")
    module = importlib.import_module(_HOME[name])
    found = module if name in ("ops", "errors") else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
