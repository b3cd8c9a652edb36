r"""Rows one after another in one sequence, each attended to by itself alone.

The tokens of all rows stand in one line, (1, Σ T_i), with positions that begin again at each row, and attention is
computed row by row:

    o_t = Σ_{u ≤ t, u in the row of t} softmax_u(c ⟨q_t, k_u⟩) v_u

so there is no padding anywhere, and attention costs Σ T_i² rather than (Σ T_i)² under a mask, or n · max T_i² with
padding.  (Transformers 4.53 and later build such a mask from the positions; before, they packed for flash-attention
only.  This way asks for no mask, and for nothing newer than the table of attention functions of 4.48.)

An architecture whose layers mix positions by other means (a state that is handed on, a convolution, an attention of its
own) would let rows see each other.  ``refusal`` tries each model on two rows before any is packed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

_NAME = "curate_row_by_row"
_lengths: ContextVar[list[int]] = ContextVar("lengths")

TOLERANCE = 1e-5
"""Of a packed row's last hidden states, relative to their largest number, in float32; 2e-2 in half precision."""


def _row_by_row(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: Any, **kwargs: Any) -> Any:
    """Attend within each row, (1, heads, Σ T_i, size of a head), by the function that models use unpacked."""
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    rows = zip(*(x.split(_lengths.get(), dim=2) for x in (query, key, value)), strict=True)
    return torch.cat([attend(module, q, k, v, None, **kwargs)[0] for q, k, v in rows], dim=1), None


@contextlib.contextmanager
def packed(model: Any, lengths: Sequence[int]) -> Iterator[torch.Tensor]:
    """Have the model attend row by row, for rows of these lengths in one line; gives their positions (1, Σ T_i)."""
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS[_NAME] = _row_by_row
    config = model.config.get_text_config()
    before, token = config._attn_implementation, _lengths.set(list(lengths))
    config._attn_implementation = _NAME
    try:
        yield torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])[None]).to(model.device)
    finally:
        config._attn_implementation = before
        _lengths.reset(token)


def refusal(model: Any, longest: int) -> str | None:
    """Return why rows of up to ``longest`` tokens cannot be packed for this model; None where they can.

    Looks at what its layers attend to, then packs two rows and compares their states with those of each alone.
    """
    import torch

    config = model.config.get_text_config()
    if config._attn_implementation != "sdpa":
        return f"its attention is {config._attn_implementation!r}, not 'sdpa'"
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    window = min((w for w in windows if w), default=longest)
    if window < longest:
        return f"its layers see {window} tokens, and the longest row has {longest}"
    size = model.get_input_embeddings().num_embeddings
    ids = torch.arange(1, 13, device=model.device)[None] * 7919 % size
    lengths = [7, 5]
    training = model.training
    model.eval()  # without dropout
    try:
        with torch.inference_mode():
            alone = torch.cat([_states(model, part) for part in ids.split(lengths, dim=1)], dim=1)
            with packed(model, lengths) as positions:
                together = _states(model, ids, position_ids=positions)
    except Exception as error:  # whatever an attention of its own raises when it is not asked in its own way
        return f"packed rows cannot go through it: {type(error).__name__}: {error}"
    finally:
        model.train(training)
    worst = float((together - alone).abs().max() / alone.abs().max())
    tolerance = TOLERANCE if model.dtype.itemsize >= 4 else 2e-2
    return None if worst <= tolerance else f"a packed row sees the row before it: its states are off by {worst:.1g}"


def _states(model: Any, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
    out: torch.Tensor = model.base_model(input_ids=ids, use_cache=False, **arguments)[0]
    return out.float()
