"""Named random streams.

Every draw in curate comes from ``rng_for(seed, *names)``.  The names say what the stream is for (a stage, a cluster, an
epoch), so the number of shards, the number of workers and the order of calls cannot change what is drawn, and two
streams never collide the way ``seed + i`` and ``seed + 1000 * j`` do.
"""

from __future__ import annotations

import hashlib

import numpy as np


def rng_for(seed: int, *names: str | int) -> np.random.Generator:
    """Return the generator of the stream called ``names`` under ``seed``.

    The names are hashed (blake2b, 128 bits) into the spawn key of a ``numpy.random.SeedSequence``, so ``("a", 1)`` and
    ``("a1",)`` are different streams, and so are ``1`` and ``"1"``.
    """
    digest = hashlib.blake2b(repr(names).encode(), digest_size=16).digest()
    key = tuple(np.frombuffer(digest, dtype="<u4").tolist())
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
