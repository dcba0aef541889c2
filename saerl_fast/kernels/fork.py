"""Forked children compute on one thread.

A fork copies the memory of the parent's worker threads but not the threads. A parallel loop in the child
would wait for them for ever; on one thread there is nothing to wait for.
"""

from __future__ import annotations

import logging
import os

import torch

logger = logging.getLogger(__name__)

_process = os.getpid()


def go_serial_after_fork() -> None:
    """In a forked child, once: set torch to one thread. Whoever raises the number again does so knowingly."""
    global _process
    if os.getpid() == _process:
        return
    _process = os.getpid()
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        logger.warning(
            "process %d was forked, so torch is set to one thread here: worker threads do not survive a fork. "
            "Start workers with the 'spawn' method to use all cores",
            _process,
        )
