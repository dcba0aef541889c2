"""The embedded world: generated problems with known truth, a tiny policy and its SAE."""
