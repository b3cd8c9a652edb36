"""Batches that do not fit into memory are tried again in halves, down to single rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from curate.models.weights import is_out_of_memory

log = logging.getLogger(__name__)

R = TypeVar("R")


def ran_out(work: Callable[[], None], device: str) -> bool:
    """Do the work; return whether memory ran out, and if so give back what is free."""
    import torch

    try:
        work()
        return False
    except Exception as error:
        if not is_out_of_memory(torch, error):
            raise
    # Outside of the except block, where the traceback no longer keeps the work's tensors alive.
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return True


def in_halves(
    batch: Sequence[R],
    work: Callable[[Sequence[R]], None],
    *,
    device: str,
    halved: Callable[[Sequence[R]], None],
    alone: Callable[[R], None],
    fits: Callable[[Sequence[R]], bool] = lambda _: True,
) -> None:
    """Do the work of a batch of one row or more; where memory runs out, that of its halves.

    Parameters
    ----------
    work : writes the answers of some rows of the batch, in their order, to where they belong; it may be begun again.
    halved : called with two rows or more at which memory ran out, before they are halved: it warns.
    alone : called with a row that does not fit into memory by itself, once.
    fits : whether rows may be tried together; one row always is.
    """
    if len(batch) == 1 or fits(batch):
        if not ran_out(lambda: work(batch), device):
            return
        if len(batch) == 1:
            return alone(batch[0])
        halved(batch)
    half = len(batch) // 2
    for part in (batch[:half], batch[half:]):
        in_halves(part, work, device=device, halved=halved, alone=alone, fits=fits)


def smaller_budget(budget: int, rows: int, width: int) -> int:
    """Return the budget of tokens for batches after ``rows`` of ``width`` tokens did not fit, with a warning."""
    budget = min(budget, width * (rows // 2))
    log.warning("out of memory at %d rows of %d tokens; batches of %d tokens from here on.", rows, width, budget)
    return budget
