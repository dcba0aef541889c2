"""How the latents of a row are cut into groups whose maxima are kept, and what the select behind them takes."""

from __future__ import annotations

from saerl_fast.kernels import native

GROUP_SIZES = (32, 64)
"""A half tile of the product holds whole groups (scores_triton.py)."""
MOST_GROUPS = 2048
"""Groups of a row at most, as the compiled select has it."""
MOST_SORTED = 8192
"""Scores that a program of the Triton select sorts at most."""


def group_size_for(n_latents: int, k: int) -> int:
    """The size of a group that moves the fewest bytes: a maximum is written and read, k groups are read.

    8 M / g + 4 k g is least near g = (2 M / k)^(1/2): 32 to 64 for published SAEs.
    """
    fitting = [g for g in GROUP_SIZES if -(-n_latents // g) <= MOST_GROUPS] or [GROUP_SIZES[-1]]
    return min(fitting, key=lambda g: 8 * n_latents / g + 4 * k * g)


def compiled_select() -> bool:
    """Whether the compiled module has the select in CUDA."""
    return native.missing() is None and bool(native.module().cuda)


def most_kept(n_latents: int, k: int) -> int:
    """The most latents a row may keep, in groups of the size for k."""
    return int(native.module().cuda_max_k) if compiled_select() else MOST_SORTED // group_size_for(n_latents, k)


def refuses(n_latents: int, k: int) -> str | None:
    """Why rows of so many latents cannot be selected from by the maxima of their groups, or None."""
    group = group_size_for(n_latents, k)
    if -(-n_latents // group) > MOST_GROUPS:
        return f"keeps the maxima of at most {MOST_GROUPS} groups of {group} latents, not of {n_latents} latents"
    limit = most_kept(n_latents, k)
    return f"keeps at most {limit} latents per row, not k={k}" if k > limit else None
