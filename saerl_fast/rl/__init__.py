"""RL: verifiers, and handing a plan to a trainer."""
