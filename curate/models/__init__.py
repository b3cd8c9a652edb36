"""Models that scorers ask: identity without loading, conversations as token ids, token log-probabilities.

Importing this package loads no machine-learning library; ``load`` and ``encoder`` do, when they are called.
"""

from curate.models.base import CausalLM, Forward, Generation, Sampling
from curate.models.identity import context, identify, width
from curate.models.loading import check, load, release, set_threads, unload
from curate.models.template import EncodedRow, Encoder, encoder

__all__ = [
    "CausalLM",
    "EncodedRow",
    "Encoder",
    "Forward",
    "Generation",
    "Sampling",
    "check",
    "context",
    "encoder",
    "identify",
    "load",
    "release",
    "set_threads",
    "unload",
    "width",
]
