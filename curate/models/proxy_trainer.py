"""The training loop of a proxy: ``transformers.Trainer`` over steps that are planned beforehand.

Imported when a training begins, since it imports Transformers and torch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from curate.exceptions import ModelError
from curate.models.base import Row
from curate.models.head import Head, head_is_known
from curate.models.packing import packed, refusal
from curate.models.proxy import Training
from curate.models.weights import is_out_of_memory

log = logging.getLogger(__name__)

_MARK = "curate.json"
"""Is written into a checkpoint when all else of it is there: the fingerprint of its training."""


@dataclass(frozen=True, eq=False)
class Run:
    """All that a training needs."""

    model: Any
    """The Transformers model; with an adapter, its layers are in it."""
    adapted: Any
    """The same, or peft's view of it: what is trained and saved."""
    rows: Sequence[Row]
    """Each cut after its last scored token."""
    lengths: NDArray[np.int64]
    plan: Sequence[NDArray[np.int64]]
    settings: Training
    rate: float
    half: bool
    device: str
    directory: Path | None
    every: float
    name: str
    fingerprint: str
    told: Callable[[int, int, float], None] | None


@dataclass(frozen=True, eq=False)
class Done:
    losses: NDArray[np.float64]
    seconds: float
    finite: bool
    unpacked: str | None
    resumed: int


def run(job: Run) -> Done:
    """Train ``job.model`` in place.

    Raises
    ------
    ModelError
        If a batch does not fit into memory, or the directory holds another training's checkpoints.
    """
    with _streams_left_alone(job.device), tempfile.TemporaryDirectory() as scratch:
        trainer = _Trainer(job, job.directory or Path(scratch))
        before = None if job.directory is None else _last(job)
        with _quiet():
            trainer.train(resume_from_checkpoint=before)
        steps = [entry for entry in trainer.state.log_history if "nats" in entry]
        return Done(
            losses=np.array([entry["nats"] for entry in steps]),
            seconds=sum(entry["seconds"] for entry in steps),
            finite=all(bool(p.isfinite().all()) for p in job.adapted.parameters() if p.requires_grad),
            unpacked=trainer.unpacked,
            resumed=0 if before is None else int(Path(before).name.rpartition("-")[2]),
        )


class _Trainer(transformers.Trainer):
    """One item of its data set is one step; see ``training_step`` for what becomes of it."""

    def __init__(self, job: Run, directory: Path) -> None:
        settings = job.settings
        arguments = transformers.TrainingArguments(
            output_dir=str(directory),
            max_steps=len(job.plan),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=1,
            learning_rate=job.rate,
            max_grad_norm=settings.clip or 0.0,
            weight_decay=settings.weight_decay,
            optim="adamw_torch_fused" if job.device != "mps" else "adamw_torch",
            bf16=job.half,
            use_cpu=job.device == "cpu",
            seed=settings.seed,
            save_strategy="no",  # by the clock: _Steps
            save_total_limit=2,  # the last of them may be half written
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            label_names=["labels"],
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # of several GPUs it would use all, with a batch on each
        steps = _Steps(job)
        super().__init__(
            model=job.adapted,
            args=arguments,
            train_dataset=range(len(job.plan)),  # type: ignore[arg-type]
            data_collator=lambda items: {"step": items[0]},
            callbacks=[steps],
        )
        self.remove_callback(transformers.trainer_callback.PrinterCallback)
        self._job, self._steps = job, steps
        self._budget = settings.batch_tokens_on(job.device)
        self._model = job.model
        config = self._model.config.get_text_config()
        self._head = Head(self._model.get_output_embeddings(), config, block=0, hold=0)
        self._by_states = head_is_known(self._model, self._head)
        vocabulary = self._model.get_input_embeddings().num_embeddings
        self._positions = max(1, settings.logits_on(job.device) // vocabulary)
        self.unpacked = self._unpacked()

    def _unpacked(self) -> str | None:
        if not self._job.settings.packing:
            return "packing was not asked"
        if not self._by_states:
            return "its logits are not its head applied to its hidden states"
        reason = refusal(self._model, int(self._job.lengths.max()))
        if reason:
            log.warning("%s: rows are padded, not packed: %s.", self._job.name, reason)
        return reason

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(range(len(self._job.plan)))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        settings, steps = self._job.settings, len(self._job.plan)
        given: Any = optimizer or self.optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(given, lambda step: settings.share_at(step, steps))
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counted by proxy.train

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Add up the gradient of a step, a batch at a time; return its loss."""
        start = time.perf_counter()
        model.train()
        chosen = self._job.plan[inputs["step"]]
        scored = sum(int(self._job.rows[i][1].sum()) for i in chosen)
        loss = torch.zeros((), device=self.args.device)
        for batch in self._batches(chosen):
            rows = [self._job.rows[i] for i in batch]
            try:
                loss += self._backward(rows, scored)
            except Exception as error:
                if not is_out_of_memory(torch, error):
                    raise
                raise ModelError(
                    f"training {self._job.name!r}: step {self.state.global_step + 1}: {len(rows)} rows of "
                    f"{sum(len(ids) - 1 for ids, _ in rows)} tokens do not fit into memory; lower batch_tokens "
                    f"({self._budget}) or max_tokens, or train an adapter (method: lora)."
                ) from error
        self._steps.taken(float(loss), time.perf_counter() - start)
        return loss

    def _batches(self, chosen: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return a step's rows in batches under the budget, longest first; a row that is longer is a batch alone."""
        rows = chosen[np.argsort(-self._job.lengths[chosen], kind="stable")]
        out: list[NDArray[np.int64]] = []
        start = used = 0
        for k, length in enumerate(self._job.lengths[rows].tolist()):
            # Padded, a row costs as much as the longest of its batch.
            its = int(self._job.lengths[rows[start]]) if self.unpacked else length
            if k > start and used + its > self._budget:
                out.append(rows[start:k])
                start, used, its = k, 0, length
            used += its
        return [*out, rows[start:]]

    def _backward(self, rows: Sequence[Row], scored: int) -> torch.Tensor:
        """Add the gradient of −Σ log p(y) / ``scored`` over some rows, longest first, and return that sum."""
        device = self.args.device
        lengths = [len(ids) - 1 for ids, _ in rows]
        its_own = [lengths[0]] * len(rows) if self.unpacked else lengths  # what each row takes of the line
        starts = np.cumsum([0, *its_own[:-1]])
        line = np.empty(sum(its_own), dtype=np.int64)
        for (ids, _), start, n, size in zip(rows, starts, lengths, its_own, strict=True):
            line[start : start + n] = ids[:-1]
            line[start + n : start + size] = ids[0]  # not the pad token, at which some models warn
        at = np.concatenate([start + np.flatnonzero(mask[1:]) for start, (_, mask) in zip(starts, rows, strict=True)])
        targets = torch.from_numpy(np.concatenate([ids[mask] for ids, mask in rows]).astype(np.int64)).to(device)
        tokens = torch.from_numpy(line).to(device)
        with self.accelerator.autocast():
            if self.unpacked:
                states = self._states(tokens.reshape(len(rows), -1))
            else:
                with packed(self._model, lengths) as positions:
                    states = self._states(tokens[None], position_ids=positions)
            read = states.reshape(-1, states.shape[-1]).index_select(0, torch.from_numpy(at).to(device))
        given = read.detach().requires_grad_()
        loss = torch.zeros((), device=device)
        for h, y in zip(given.split(self._positions), targets.split(self._positions), strict=True):
            with self.accelerator.autocast():
                logits = self._head.logits(h) if self._by_states else h.float()
            part = torch.nn.functional.cross_entropy(logits, y, reduction="sum") / scored
            part.backward()
            loss += part.detach()
        read.backward(given.grad)
        return loss

    def _states(self, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """Return (n, T, d) last hidden states, or where those are not enough (n, T, V) logits."""
        model = self._model.base_model if self._by_states else self._model
        out: torch.Tensor = model(input_ids=ids, use_cache=False, **arguments)[0]
        return out


class _Steps(transformers.TrainerCallback):
    """Notes each step in the trainer's state, which checkpoints keep; stops where the loss is no number."""

    def __init__(self, job: Run) -> None:
        self._job = job
        self._saved = time.monotonic()
        self._step = (0.0, 0.0)

    def taken(self, loss: float, seconds: float) -> None:
        self._step = loss, seconds
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        loss, seconds = self._step
        seconds += time.perf_counter() - self._began  # of the optimizer
        state.log_history.append({"step": state.global_step, "nats": loss, "seconds": seconds})
        if not np.isfinite(loss):
            control.should_training_stop = True
        elif self._job.directory is not None:
            last = state.global_step == len(self._job.plan)
            control.should_save = last or time.monotonic() - self._saved >= self._job.every
        if self._job.told is not None:
            self._job.told(state.global_step, len(self._job.plan), loss)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        part = folder / f"{_MARK}.part"
        part.write_text(json.dumps({"training": self._job.fingerprint}))
        os.replace(part, folder / _MARK)
        self._saved = time.monotonic()


def _last(job: Run) -> str | None:
    """Return the last whole checkpoint in the directory; None where there is none.

    Raises
    ------
    ModelError
        If it is of another training.
    """
    assert job.directory is not None
    marks = sorted(job.directory.glob(f"checkpoint-*/{_MARK}"), key=lambda m: int(m.parent.name.rpartition("-")[2]))
    for mark in marks:
        if json.loads(mark.read_text())["training"] != job.fingerprint:
            raise ModelError(
                f"training {job.name!r}: {mark.parent} is a checkpoint of other rows, settings or weights; "
                "remove it, or give another directory."
            )
    return str(marks[-1].parent) if marks else None


@contextlib.contextmanager
def _streams_left_alone(device: str) -> Iterator[None]:
    """The trainer seeds the process's own random streams; give them back as they were."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([0] if device.startswith("cuda") else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bar for each checkpoint that is written."""
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():  # peft asks Transformers by a name that is on its way out
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
