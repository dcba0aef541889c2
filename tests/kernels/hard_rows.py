"""Rows that are hard to select from, and the select by sorting."""

import torch

ROWS = 4
INF = float("inf")


def by_sorting(scores, k):
    """NaN rows aside: descending, ties to the lower index."""
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    return ordered[:, :k], order[:, :k].int()


def rising(width):
    """Every score beats all before it: the worst case of a running select."""
    return torch.arange(float(width)).expand(ROWS, width)


def waves(width):
    """Blocks of 100 equal scores, each block above the one before."""
    return (torch.arange(width) // 100).float().expand(ROWS, width)


def one_in_each_group(width):
    """A score of 5 in every 16 columns, so that all group maxima are equal."""
    return torch.where(torch.arange(width) % 16 == 11, 5.0, -5.0).expand(ROWS, width)


def crowded_group(width):
    """All large scores sit side by side, in one group."""
    scores = torch.rand(ROWS, width, generator=torch.Generator().manual_seed(1))
    scores[:, width // 2 : width // 2 + 300] += 10
    return scores


def infinite(width):
    chance = torch.rand(ROWS, width, generator=torch.Generator().manual_seed(2))
    return torch.where(chance < 0.3, -INF, torch.where(chance > 0.9, INF, chance))


INPUTS = {
    "random": lambda width: torch.randn(ROWS, width, generator=torch.Generator().manual_seed(0)),
    "tied": lambda width: torch.randint(-3, 3, (ROWS, width), generator=torch.Generator().manual_seed(0)).float(),
    "rising": rising,
    "falling": lambda width: -rising(width),
    "waves": waves,
    "falling_waves": lambda width: -waves(width),
    "equal": lambda width: torch.full((ROWS, width), -2.5),
    "lowest": lambda width: torch.full((ROWS, width), -INF),
    "highest": lambda width: torch.full((ROWS, width), INF),
    "one_in_each_group": one_in_each_group,
    "crowded_group": crowded_group,
    "infinite": infinite,
    "signed_zeros": lambda width: torch.where(torch.arange(width) % 3 == 1, 0.0, -0.0).expand(ROWS, width),
    "smallest": lambda width: (torch.arange(width) % 7 - 3).float().expand(ROWS, width) * 1e-45,
}
