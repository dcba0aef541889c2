"""Batch plans: which samples, in which order, in which batch."""

from saerl_fast.curriculum.handoff import fingerprint
from saerl_fast.curriculum.make import make_plan
from saerl_fast.curriculum.plan import BatchPlan, Step
from saerl_fast.curriculum.policies import PRESETS, Policy

__all__ = ["PRESETS", "BatchPlan", "Policy", "Step", "fingerprint", "make_plan"]
