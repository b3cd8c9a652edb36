r"""Forward passes by Hugging Face Transformers.

    log p(t_i | t_<i) = z[t_i] − log Σ_v exp z[v],      z = g(W h_{i−1})

where h is the last hidden state, W the output head and g what some architectures do to logits (a scale, a soft cap).

Where the time and the memory go, and what is done about it:

* Rows are sorted by length and batched under a budget of padded tokens, so little padding is computed.  It stands on
  the right, where a causal model cannot see it: no attention mask is needed, and attention takes its fast causal path.
* What follows the last scored token is not read, and logits are computed only at positions that predict a scored token,
  a few hundred at a time: T×V numbers never exist at once.  So is the last layer's MLP (``curate.models.last_mlp``).
* What several rows begin with is computed once (``curate.models.prefix``), within one call of ``forward``.
* On a CPU each thread takes batches of its own (``curate.models.threads``).
* On out-of-memory the batch is halved, and the budget with it, once and for all.

Hidden states times head are the model's logits for most architectures but not for all, so each model is tested when it
is loaded; one that fails the test goes through its own forward pass, slower and right.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curate._imports import require
from curate.exceptions import ModelError
from curate.models.base import QUANTITIES, CausalLM, DType, Forward, Generation, Quantity, Row, Sampling
from curate.models.compiled import compile_layers
from curate.models.generation import KEPT, Text, Writer, end_tokens, together
from curate.models.halving import in_halves, ran_out, smaller_budget
from curate.models.head import Head, head_is_known
from curate.models.key_values import bytes_per_token
from curate.models.last_mlp import last_mlp
from curate.models.lora import Checkpoint, merged
from curate.models.prefix import EXPANSION, Group, Prefixes, batches, groups, shares_prefixes
from curate.models.rows import check_prompt, check_row
from curate.models.template import load_tokenizer
from curate.models.threads import run_batches
from curate.models.weights import changes_when_run, find_device, load_weights

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_ALL_TOKENS: frozenset[Quantity] = frozenset({"hidden-weighted", "hidden-mean", "hidden-last", "logit-norm-all"})
_OF_LOGITS: frozenset[Quantity] = frozenset({"logprobs", "entropy", "head-gradient"})
_STATE: frozenset[Any] = frozenset({"state"})  # that predicts the last scored token; asked by this module only
_LINEAR: frozenset[Quantity] = frozenset({"head-gradient", "logit-norm", "logit-norm-all"})  # not of a capped head

_BATCH_TOKENS = {"cpu": 1024, "other": 16384}
_HEAD_BLOCK = {"cpu": 2**18, "other": 2**27}  # logits that are worked on at once: 1 MiB of float32, 512 MiB
_HEAD_HOLD = {"cpu": 2**26, "other": 2**29}  # logits that a gradient may hold: 256 MiB a thread, 2 GiB


class TransformersLM(CausalLM):
    """A causal LM in this process.

    Parameters
    ----------
    model : a folder or a Hub name; see ``curate.models.identity.locate``.  Safetensors only, no code from the Hub.
    dtype : type of weights and activations; logits are always turned to float32 before the softmax.  "auto" depends on
        the model alone and not on the machine, so that a plan and its workers mean the same scores: float32 below 10⁹
        parameters, the type that the weights are stored in above.
    device : "cpu", "cuda", "cuda:1", "mps"; "auto" takes a GPU where there is one.
    batch_tokens : tokens of a batch, padding counted; default 1024 on a CPU (what its cache holds), 16384 else.
    compiled : let torch.compile fuse the element-wise steps of the layers; see ``curate.models.compiled``.  Rows then
        share no beginnings.
    share : compute what several rows begin with once, where the model can.
    adapter : added to the weights.
    loaded : the model in memory, whatever its files say: one that was trained.

    Raises
    ------
    ModelError
        If the model cannot be found or loaded, if weights are missing from its files, or if the device is not there.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: DType = "auto",
        device: str = "auto",
        batch_tokens: int | None = None,
        compiled: bool = False,
        share: bool = True,
        adapter: Checkpoint | None = None,
        loaded: Any = None,
    ) -> None:
        torch = require("torch", extra="lm", for_=f"the model {model!r}")
        self.device = find_device(torch, device)
        loaded = (load_weights(model, dtype) if loaded is None else loaded).to(self.device)
        self._model = (loaded if adapter is None else merged(loaded, adapter, name=model)).eval()
        config = self._model.config.get_text_config()
        self.context = getattr(config, "max_position_embeddings", None)
        self.vocab_size = self._model.get_input_embeddings().num_embeddings
        self.dtype = str(self._model.dtype).removeprefix("torch.")
        kind = "cpu" if self.device == "cpu" else "other"
        self.batch_tokens = batch_tokens or _BATCH_TOKENS[kind]
        """Tokens of a batch; halved for good when memory runs out."""
        self._one_batch_per_thread = self.device == "cpu" and not changes_when_run(config)
        self._head = Head(self._model.get_output_embeddings(), config, block=_HEAD_BLOCK[kind], hold=_HEAD_HOLD[kind])
        with torch.inference_mode():
            self.by_hidden_states = head_is_known(self._model, self._head)
            """Whether logits are computed from hidden states, at the scored positions only."""
            base = self._model.base_model
            self._last_mlp = last_mlp(torch, base, self.vocab_size, self.device) if self.by_hidden_states else None
            able = self.by_hidden_states and not changes_when_run(config)
            self._caches = able and shares_prefixes(torch, base, self.vocab_size, self.device, self._last_mlp)
            self._bytes_per_token = bytes_per_token(base, self.device) if self._caches else None
            if not self._caches:
                log.debug("%s: %s keeps no cache that rows could share.", model, type(self._model).__name__)
            self.shares = self._caches and share and not compiled
            """Whether what several rows begin with is computed once."""
        self._name = model
        self._compiled = compiled
        self._writer: Writer | None = None
        if compiled:
            compile_layers(torch, self._model.base_model, one_thread=self._one_batch_per_thread)
        if not self.by_hidden_states:
            self.serves = frozenset({"logprobs"})
        elif np.isnan(self._head.scale):
            self.serves = frozenset(QUANTITIES) - _LINEAR
        else:
            self.serves = frozenset(QUANTITIES)
            self.head_norm = self._head.norm
        if not self.by_hidden_states:
            log.warning(
                "%s: the logits of %s are not its head applied to its hidden states; scoring by full forward passes.",
                model,
                type(self._model).__name__,
            )

    def close(self) -> None:
        if self._model is not None and self.device.startswith("cuda"):
            import torch

            self._model = None
            torch.cuda.empty_cache()
        self._model = None

    def describe(self) -> dict[str, str]:
        import transformers

        return {
            "backend": f"transformers {transformers.__version__}",
            "dtype": self.dtype,
            "device": self.device,
        } | ({"layers": "compiled"} if self._compiled else {})

    def forward(self, rows: Sequence[Row], quantities: Collection[Quantity]) -> list[Forward | None]:

        wants = frozenset(quantities)
        self._check_served(wants)
        return self._pass(rows, wants)

    def _pass(self, rows: Sequence[Row], wants: frozenset[Quantity]) -> list[Forward | None]:
        """Return what ``forward`` does; ``wants`` may also be the state before the last scored token."""
        scored = [
            check_row(i, ids, mask, vocab_size=self.vocab_size, context=self.context)
            for i, (ids, mask) in enumerate(rows)
        ]
        out: list[Forward | None] = [_nothing(wants) for _ in rows]
        # The input ends before the last scored token, from which nothing is predicted, unless its own state is asked.
        whole = bool(wants & _ALL_TOKENS)
        lengths = np.array(
            [ids.size if whole else at[-1] if at.size else 0 for (ids, _), at in zip(rows, scored, strict=True)],
            dtype=np.int64,
        )
        order = np.argsort(-lengths, kind="stable")  # longest first: if memory runs out, it does so at once
        order = order[lengths[order] > 0]
        call = _Call([row[0] for row in rows], scored, lengths, wants, out)
        tasks: list[Callable[[], None]] = []
        if self.shares and not whole:
            found = groups(call.ids, [at[0] - 1 if at.size else 0 for at in scored], lengths)
            for batch in batches(found, self.batch_tokens):
                tasks.append(partial(self._score_shared, batch, call))
            order = order[~np.isin(order, [j for group in found for j in group.rows])]
        while order.size:
            size = max(1, self.batch_tokens // int(lengths[order[0]]))
            tasks.append(partial(self._score_rows, order[:size], call))
            order = order[size:]

        run_batches(tasks, apart=self._one_batch_per_thread)
        return out

    def option_logprobs(
        self, prompts: Sequence[NDArray[np.integer]], options: Sequence[Sequence[NDArray[np.integer]]]
    ) -> list[NDArray[np.float64] | None]:
        # Options of one token each are read from one state, whatever their number; longer ones are rows.
        short = [i for i, its in enumerate(options) if self.by_hidden_states and its and all(len(o) == 1 for o in its)]
        out: list[NDArray[np.float64] | None] = [None] * len(prompts)
        rest = sorted(set(range(len(prompts))) - set(short))
        found = super().option_logprobs([prompts[i] for i in rest], [options[i] for i in rest])
        for i, values in zip(rest, found, strict=True):
            out[i] = values
        for i in short:  # the pass below reads one option of each prompt only
            for option in options[i]:
                check_prompt(i, np.asarray(option), vocab_size=self.vocab_size, context=None)
        rows = [
            (np.concatenate([prompts[i], options[i][0]]), np.arange(len(prompts[i]) + 1) == len(prompts[i]))
            for i in short
        ]
        for i, state in zip(short, self._pass(rows, _STATE), strict=True):
            if state is not None:
                out[i] = self._head.options(state.hidden_last, np.concatenate(options[i]))
        return out

    def generate(self, prompts: Sequence[NDArray[np.integer]], sampling: Sampling) -> list[list[Generation] | None]:
        """Return ``sampling.n`` texts for each prompt; see ``curate.models.generation``.

        Raises
        ------
        InputError
            If a prompt is empty, longer than the context, or has an id outside of the vocabulary.
        """
        import torch

        for i, prompt in enumerate(prompts):
            check_prompt(i, prompt, vocab_size=self.vocab_size, context=self.context)
        writer = self._writer = self._writer or self._new_writer()
        texts = [[Text.of(prompt, k, sampling, self.context) for k in range(sampling.n)] for prompt in prompts]
        out: list[list[Generation] | None] = [None] * len(prompts)

        def write(batch: Sequence[Text]) -> None:
            with torch.inference_mode():
                writer.write(batch, sampling, self.batch_tokens)

        def halved(batch: Sequence[Text]) -> None:
            log.warning("out of memory at %d texts together; they are written again, in halves.", len(batch))

        def finish(batch: Sequence[int]) -> None:
            its = [text for i in batch for text in texts[i]]
            in_halves(its, write, device=self.device, halved=halved, alone=lambda _: None)
            for i in batch:
                if all(text.over for text in texts[i]):
                    out[i] = [writer.result(text, sampling) for text in texts[i]]

        batches_of = together(
            [prompt.size for prompt in prompts],
            sampling,
            KEPT * self.batch_tokens // writer.bytes_per_token,
            threads=torch.get_num_threads() if self._one_batch_per_thread else 1,
        )
        tasks = [partial(finish, batch) for batch in batches_of]
        # Compiled layers would be compiled anew for the growing caches.
        with torch.compiler.set_stance("force_eager") if self._compiled else contextlib.nullcontext():
            run_batches(tasks, apart=self._one_batch_per_thread)
        return out

    def _new_writer(self) -> Writer:
        tokenizer = load_tokenizer(self._name)
        return Writer(
            base=None if self._bytes_per_token is None else self._model.base_model,
            bytes_per_token=self._bytes_per_token or KEPT // EXPANSION,
            logits=self._head.logits,
            whole=self._next_logits,
            tokenizer=tokenizer,
            ends=end_tokens(self._model, tokenizer),
            device=self.device,
        )

    def _check_served(self, wants: frozenset[Quantity]) -> None:
        lacking = wants - self.serves
        if lacking:
            why = "caps its logits" if self.by_hidden_states else "has a head that is not known"
            raise ModelError(
                f"{', '.join(sorted(lacking))} were asked, but {type(self._model).__name__} {why}; it gives "
                f"{', '.join(sorted(self.serves))}."
            )

    def _score_rows(self, batch: NDArray[np.int64], call: _Call) -> None:
        """Write the answers of some rows, longest first, into their places."""
        import torch

        def work(rows: Sequence[int]) -> None:
            ids, scored = [call.ids[j] for j in rows], [call.scored[j] for j in rows]
            with torch.inference_mode():
                if self.by_hidden_states:
                    found = self._by_hidden_states(ids, scored, call.lengths[rows], call.wants)
                else:
                    found = self._by_forward(ids, scored)
            for j, row in zip(rows, found, strict=True):
                call.out[j] = row

        def halved(rows: Sequence[int]) -> None:
            self.batch_tokens = smaller_budget(self.batch_tokens, len(rows), int(call.lengths[rows[0]]))

        def alone(j: int) -> None:
            call.out[j] = None

        in_halves(
            batch.tolist(),
            work,
            device=self.device,
            halved=halved,
            alone=alone,
            fits=lambda rows: len(rows) * int(call.lengths[rows[0]]) <= self.batch_tokens,
        )

    def _score_shared(self, batch: Sequence[Group], call: _Call) -> None:
        """Write the answers of the rows of some groups into their places; without sharing if memory does not allow."""
        import torch

        parts = batches(batch, self.batch_tokens)  # which may have been halved since
        if len(parts) > 1:
            for part in parts:
                self._score_shared(part, call)
            return

        def work() -> None:
            with torch.inference_mode():
                self._by_shared_states(batch, call)

        if not ran_out(work, self.device):
            return
        rows = np.array([j for group in batch for j in group.rows])
        log.warning("out of memory at %d rows that share their beginnings; each is computed whole.", rows.size)
        self._score_rows(rows[np.argsort(-call.lengths[rows], kind="stable")], call)

    def _batch(self, ids: Sequence[NDArray[np.integer]], width: int) -> torch.Tensor:
        """Return the ids as an int64 matrix (n, width), cut or padded on the right."""
        import torch

        matrix = np.zeros((len(ids), width), dtype=np.int64)
        for row, values in zip(matrix, ids, strict=True):
            row[:] = values[0]  # not the pad token: some models warn when they see that without an attention mask
            row[: min(width, values.size)] = values[:width]
        return torch.from_numpy(matrix).to(self.device)

    def _by_shared_states(self, batch: Sequence[Group], call: _Call) -> None:
        beginnings = [call.ids[group.rows[0]][: group.length] for group in batch]
        prefixes = Prefixes(self._model.base_model, beginnings, self.device, self._last_mlp)
        rows = np.array([j for group in batch for j in group.rows])
        of = np.repeat(np.arange(len(batch)), [len(group.rows) for group in batch])
        start = np.array([group.length for group in batch])[of]
        own = call.lengths[rows] - start
        order = np.argsort(-own, kind="stable")
        while order.size:
            width = int(own[order[0]])
            size = min(self.batch_tokens // width, EXPANSION * self.batch_tokens // (batch[0].length + width))
            chunk, order = np.split(order, [max(1, size)])
            found = self._by_hidden_states(
                [call.ids[rows[i]][start[i] :] for i in chunk],
                [call.scored[rows[i]] - start[i] for i in chunk],
                own[chunk],
                call.wants,
                partial(prefixes.states, of=of[chunk]),
            )
            for i, row in zip(chunk, found, strict=True):
                call.out[rows[i]] = row

    def _by_hidden_states(
        self,
        ids: Sequence[NDArray[np.integer]],
        scored: Sequence[NDArray[np.int64]],
        lengths: NDArray[np.int64],
        wants: frozenset[Quantity],
        states_of: Callable[..., torch.Tensor] | None = None,
    ) -> list[Forward | None]:
        """Return the quantities of one batch, longest first, in one pass.

        ``states_of``: what gives the states of the ids (n, width), right at the flat positions ``at``; by default the
        model alone.
        """
        import torch

        width = int(lengths[0])
        counts = [at.size for at in scored]
        row = np.repeat(np.arange(len(ids)), counts)
        flat = torch.from_numpy(row * width + np.concatenate(scored) - 1).to(self.device)
        states = (states_of or self._states)(
            self._batch(ids, width), at=None if wants & _ALL_TOKENS or self._last_mlp is None else flat
        )
        hidden = states.reshape(-1, states.shape[-1]).index_select(0, flat)  # (scored tokens, width of the model)
        targets = np.concatenate([v[at] for v, at in zip(ids, scored, strict=True)]).astype(np.int64)
        if wants & _OF_LOGITS:
            found = self._head.of_rows(hidden, torch.from_numpy(targets).to(self.device), counts, wants)
        else:
            found = [Forward() for _ in ids]
        if wants & _STATE:
            for out, part in zip(found, hidden.split(counts), strict=True):
                out.hidden_last = part[-1].float().cpu().numpy()
        if "logit-norm" in wants:
            for out, part in zip(found, hidden.split(counts), strict=True):
                out.logit_norm = self._head.nuclear_norm(part)
        if wants & _ALL_TOKENS:
            for out, part, n in zip(found, states, lengths.tolist(), strict=True):
                _pool(out, part[:n], wants)
                if "logit-norm-all" in wants:
                    out.logit_norm_all = self._head.nuclear_norm(part[:n])
        return list(found)

    def _states(self, ids: torch.Tensor, at: torch.Tensor | None) -> torch.Tensor:
        """Return the last hidden states (n, width, d), with ``at`` right at these flat positions only."""
        with contextlib.nullcontext() if at is None or self._last_mlp is None else self._last_mlp.only(at):
            return self._model.base_model(input_ids=ids, use_cache=False)[0]

    def _by_forward(
        self, ids: Sequence[NDArray[np.integer]], scored: Sequence[NDArray[np.int64]]
    ) -> list[Forward | None]:
        """Row by row through the model's own forward pass; for architectures whose head is not known."""
        import torch

        out: list[Forward | None] = []
        for values, at in zip(ids, scored, strict=True):
            logits = self._model(input_ids=self._batch([values], int(at[-1])), use_cache=False).logits[0]
            targets = torch.from_numpy(values[at].astype(np.int64)).to(self.device)
            z = logits[at - 1].float()
            found = z.gather(-1, targets[:, None])[:, 0] - torch.logsumexp(z, dim=-1)
            out.append(Forward(logprobs=found.cpu().numpy()))
        return out

    def _next_logits(self, ids: NDArray[np.int64]) -> torch.Tensor:
        """Return the logits (V,) after a sequence, computed from its beginning by the model's own forward pass."""
        return self._model(input_ids=self._batch([ids], ids.size), use_cache=False).logits[0, -1]


@dataclass(frozen=True, slots=True)
class _Call:
    """What one call of ``forward`` is about: token ids of each row, scored positions, tokens to compute, answers."""

    ids: list[NDArray[np.integer]]
    scored: list[NDArray[np.int64]]
    lengths: NDArray[np.int64]
    wants: frozenset[Quantity]
    out: list[Forward | None]


def _nothing(wants: frozenset[Quantity]) -> Forward:
    """Return what is known of a row without a single token to compute."""
    empty = np.empty(0, np.float32)
    return Forward(
        logprobs=empty if "logprobs" in wants else None,
        entropy=empty if "entropy" in wants else None,
        head_gradient=(float("nan"), float("nan")) if "head-gradient" in wants else None,
        logit_norm=0.0 if "logit-norm" in wants else None,
        logit_norm_all=0.0 if "logit-norm-all" in wants else None,
    )


def _pool(out: Forward, states: torch.Tensor, wants: frozenset[Quantity]) -> None:
    """Pool the states of all T tokens of a row, (T, d), in float32."""
    import torch

    states = states.float()
    if "hidden-weighted" in wants:
        weights = torch.arange(1, len(states) + 1, dtype=torch.float32, device=states.device)
        out.hidden_weighted = ((weights / weights.sum()) @ states).cpu().numpy()
    if "hidden-mean" in wants:
        out.hidden_mean = states.mean(dim=0).cpu().numpy()
    if "hidden-last" in wants:
        out.hidden_last = states[-1].cpu().numpy()
