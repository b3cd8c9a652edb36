r"""Token log-probabilities, as plainly as they can be had: what the fast path is measured against.

One row at a time through the model's own forward pass in float64, full logits, softmax by its definition, one Python
loop over the scored tokens.  Transformers computes norms and rotary angles in float32 whatever the weights are, which
leaves errors near 1e-7 in the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate._imports import require
from curate.models.base import Row
from curate.models.identity import locate


def load_reference(model: str) -> Any:
    """Return the Transformers model in float64 on the CPU, with attention computed step by step."""
    transformers = require("transformers", extra="lm", for_=f"the model {model!r}")
    source = locate(model)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        source.name, **source.arguments, use_safetensors=True, attn_implementation="eager"
    )
    return loaded.double().eval()


def reference_logprobs(loaded: Any, rows: Sequence[Row]) -> list[NDArray[np.float64]]:
    """Return log p(t_i | t_<i), in nats, of each scored token of each row; float64."""
    torch = require("torch", extra="lm", for_="a language model")
    out = []
    for ids, mask in rows:
        with torch.no_grad():
            logits = loaded(input_ids=torch.tensor([ids.tolist()])).logits[0].numpy()
        values = []
        for i in np.flatnonzero(mask):
            z = logits[i - 1] - logits[i - 1].max()
            values.append(z[ids[i]] - np.log(np.exp(z).sum()))
        out.append(np.array(values, dtype=np.float64))
    return out
