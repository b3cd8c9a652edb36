r"""Texts that go on from prompts, token by token, with keys and values kept.

Greedy: the likeliest token.  Otherwise token v is drawn with probability proportional to exp(z_v / temperature) among
the likeliest tokens that together reach ``top_p``, by inverting the cumulative distribution at one uniform number a
token.  Those numbers come from a stream of the text's own, named by (seed, the prompt's tokens, k), so neither the
prompts beside it nor the batches change a text, unless two tokens are so near each other that rounding decides.

Each prompt is computed once for all its texts, and a text that has ended leaves the batch; see
``curate.models.key_values``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import ModelError
from curate.models.base import Generation, Sampling
from curate.models.key_values import KeyValues, closed_up
from curate.seeding import rng_for

if TYPE_CHECKING:
    import torch

KEPT = 2**19
"""Bytes of keys and values that the texts of a batch may have, for each token of the model's batch budget: half a GiB a
thread on a CPU, 8 GiB else."""
PADDING = 1 / 4, 64
"""Columns of a text that may be padding: a share of those of the batch, or so many, whichever is more."""
_FEW = 32
"""Texts that threads do not divide among them: each pass costs its own, however few there are."""
_NUCLEUS = 1024
"""Tokens that are sorted at first; where they do not reach ``top_p``, all are."""


@dataclass(slots=True)
class Text:
    """One text on its way."""

    prompt: NDArray[np.int64]
    limit: int
    """Tokens it may have."""
    name: tuple[str | int, ...]
    """Of the stream that its draws come from."""
    ids: list[int] = field(default_factory=list)
    ended: Literal["", "token", "stop"] = ""
    """What ended it; "" while it goes on, or where it was cut."""

    @classmethod
    def of(cls, prompt: NDArray[np.integer], k: int, sampling: Sampling, context: int | None) -> Text:
        """Return text ``k`` of a prompt, not begun."""
        ids = np.asarray(prompt, dtype=np.int64)
        limit = sampling.max_tokens if context is None else min(sampling.max_tokens, context - ids.size)
        return cls(ids, limit, ("generate", hashlib.blake2b(ids.astype("<i8").tobytes()).hexdigest(), k))

    @property
    def over(self) -> bool:
        return bool(self.ended) or len(self.ids) >= self.limit


@dataclass(frozen=True)
class Writer:
    """Writes texts to their ends.

    Parameters
    ----------
    base : the model without its head; None where it keeps no cache, or none that rows of several lengths can share.
    bytes_per_token : of its keys and values.
    logits : logits (n, V) of last hidden states (n, d).
    whole : logits (V,) after a sequence (T,), computed from its beginning; used where ``base`` is None.
    tokenizer : for the texts and their stops.
    ends : ids that end a text.
    """

    base: Any
    bytes_per_token: int
    logits: Callable[[torch.Tensor], torch.Tensor]
    whole: Callable[[NDArray[np.int64]], torch.Tensor]
    tokenizer: Any
    ends: frozenset[int]
    device: str

    def write(self, texts: Sequence[Text], sampling: Sampling, batch_tokens: int) -> None:
        """Write texts to their ends, as one batch; the longest prompt first, and texts of one prompt together.

        Those that are not over begin anew.  Prompts go through the model in passes of ``batch_tokens``.

        Raises
        ------
        ModelError
            If the model gives NaN.
        """
        live = [text for text in texts if not text.over]
        for text in live:
            text.ids.clear()
        streams = {id(text): rng_for(sampling.seed, *text.name) for text in live if sampling.temperature}
        kept = self._begun(live, batch_tokens) if self.base is not None and live else None
        while live:
            z = self._each(live) if kept is None else self.logits(kept.hidden)
            if bool(z.isnan().any()):
                raise ModelError(f"generate: the model's logits are NaN after {len(live[0].ids)} tokens of a text.")
            tokens = choose(z, sampling, [streams[id(text)].random() if streams else 0.0 for text in live])
            for text, token in zip(live, tokens.tolist(), strict=True):
                text.ids.append(token)
                text.ended = "token" if token in self.ends else "stop" if self._stops(text, sampling) else ""
            going = closed_up(len(live), [i for i, text in enumerate(live) if not text.over])
            live = [live[i] for i in going]
            if kept is not None and live:
                kept.advance(tokens, going)

    def result(self, text: Text, sampling: Sampling) -> Generation:
        """Return what was written, without what ended it; ``tokens`` counts that too."""
        written = self._decode(text.ids[:-1] if text.ended == "token" else text.ids)
        if text.ended == "stop":
            written = written[: min(at for at in map(written.find, sampling.stop) if at >= 0)]
        return Generation(written, len(text.ids), bool(text.ended), np.array(text.ids, dtype=np.int64))

    def _begun(self, texts: Sequence[Text], batch_tokens: int) -> KeyValues:
        first = [i for i, text in enumerate(texts) if not i or text.prompt is not texts[i - 1].prompt]
        return KeyValues(
            self.base,
            [texts[i].prompt for i in first],
            np.repeat(np.arange(len(first)), np.diff([*first, len(texts)])),
            room=max(text.limit for text in texts),
            batch_tokens=batch_tokens,
            device=self.device,
        )

    def _each(self, texts: Sequence[Text]) -> torch.Tensor:
        import torch

        return torch.stack([self.whole(np.append(text.prompt, text.ids).astype(np.int64)) for text in texts])

    def _stops(self, text: Text, sampling: Sampling) -> bool:
        """Whether the text has come to a stop, which then ends in its last token: the last few tell."""
        if not sampling.stop:
            return False
        longest = max(len(stop.encode()) for stop in sampling.stop)
        tail = self._decode(text.ids[-(longest + 8) :])  # a token holds a byte at least; the first may be torn
        return any(map(tail.__contains__, sampling.stop)) and any(
            map(self._decode(text.ids).__contains__, sampling.stop)
        )

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def together(sizes: Sequence[int], sampling: Sampling, budget: int, threads: int) -> list[list[int]]:
    """Return prompts in batches, the longest first.

    A batch of m prompts keeps m · n · (longest prompt + new tokens) columns of keys and values.

    Parameters
    ----------
    sizes : tokens of each prompt.
    budget : columns of a batch; one prompt may have more.
    threads : that take batches: each is to have one, if there are texts enough.
    """
    columns = np.array(sizes, dtype=np.int64) + sampling.max_tokens
    share = sampling.n * int(columns.sum()) // threads
    order = np.argsort(-columns, kind="stable")
    out: list[list[int]] = []
    while order.size:
        longest = int(columns[order[0]])
        near = int((longest - columns[order] <= max(PADDING[0] * longest, PADDING[1])).sum())
        size = max(1, min(near, min(budget, max(share, _FEW * longest)) // (sampling.n * longest)))
        out.append(order[:size].tolist())
        order = order[size:]
    return out


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end a text: those of the model's generation settings, its configuration and its tokenizer."""
    settings = getattr(model, "generation_config", None), model.config.get_text_config(), tokenizer
    found: set[int] = set()
    for ids in (getattr(setting, "eos_token_id", None) for setting in settings):
        found.update([] if ids is None else [ids] if isinstance(ids, int) else ids)
    return frozenset(found)


def choose(z: torch.Tensor, sampling: Sampling, draws: Sequence[float]) -> torch.Tensor:
    """Return the next token of each row, int64 (n,).

    Parameters
    ----------
    z : logits (n, V).
    draws : a number in [0, 1) for each row; of no use where the temperature is 0.
    """
    import torch

    if not sampling.temperature:
        return z.argmax(dim=-1)
    z = z.float() if z.device.type == "mps" else z.double()
    u = torch.tensor(list(draws), dtype=z.dtype, device=z.device)[:, None]
    p = torch.softmax(z / sampling.temperature, dim=-1)
    if sampling.top_p >= 1:
        return _invert(p, u)
    likeliest, order = p.topk(min(_NUCLEUS, p.shape[-1]), dim=-1)
    if bool((likeliest.sum(dim=-1) < sampling.top_p).any()):
        likeliest, order = p.sort(dim=-1, descending=True)
    before = likeliest.cumsum(dim=-1) - likeliest
    at = _invert(likeliest * (before < sampling.top_p), u)
    return order.gather(1, at[:, None])[:, 0]


def _invert(p: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Return the first place where the cumulative sum of p (n, V) exceeds u (n, 1) times the whole."""
    import torch

    total = p.cumsum(dim=-1)
    at = torch.searchsorted(total, u * total[:, -1:], right=True)[:, 0]
    # Rounding may carry u · total to the total itself; no token of probability 0 is ever taken.
    last = p.shape[-1] - 1 - (p > 0).flip(-1).to(torch.uint8).argmax(dim=-1)
    return torch.minimum(at, last)
