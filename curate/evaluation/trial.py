"""One trial: a proxy is trained on some rows, and measured on the held-out examples.  What happens inside a worker.

A trial is named by all that its outcome depends on, and kept under that name: ``trials/KEY.parquet`` has a row for each
held-out example, ``trials/KEY.json`` what the training was.  A training that is stopped goes on from its last
checkpoint, where the directory is local.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from curate.fingerprint import fingerprint
from curate.models.base import Row
from curate.models.measure import Asking
from curate.models.proxy import Training
from curate.pipelines.store import Store
from curate.pipelines.worker import close_scorers

if TYPE_CHECKING:
    from curate.models.transformers_lm import TransformersLM

VERSION = 1
"""Raised whenever the same rows and settings would have another outcome."""
ROWS = pa.schema([("ids", pa.list_(pa.int32())), ("mask", pa.list_(pa.bool_()))])


@dataclass(frozen=True)
class Setting:
    """What all trials of an evaluation share."""

    model: str
    identity: Any
    """Of the model's weights."""
    template: Literal["auto", "chat", "plain"]
    template_identity: Any
    training: Training
    asking: Asking
    examples: str
    """Digest of the held-out examples."""

    def key(self, rows: Sequence[Row], *, epochs: int, seed: int) -> str:
        """Return the name of the trial that trains on rows, in any order; of none it is the untrained model."""
        training = asdict(replace(self.training, epochs=epochs, seed=seed)) if rows else None
        digests = sorted(map(_digest, rows))
        asking = json.loads(json.dumps(asdict(self.asking), default=str, sort_keys=True))
        parts = (self.identity, self.template_identity, training, digests, asking, self.examples)
        return fingerprint("trial", VERSION, *parts)


def write_rows(store: Store, key: str, rows: Sequence[Row]) -> None:
    """Put the rows of a trial where a worker finds them: a scheduler would keep them in memory.

    They stand in the order of their content, so that the order in which they were chosen changes nothing.
    """
    rows = sorted(rows, key=_digest)
    table = pa.table(
        {"ids": [ids.astype(np.int32) for ids, _ in rows], "mask": [mask for _, mask in rows]}, schema=ROWS
    )
    store.write_table(table, ".curate", "trials", f"{key}.parquet")


def _digest(row: Row) -> str:
    ids, mask = row
    return hashlib.blake2b(ids.astype("<i8").tobytes() + b"|" + mask.tobytes(), digest_size=16).hexdigest()


def trial(store: Store, setting: Setting, key: str, epochs: int, seed: int) -> dict[str, Any]:
    """Carry out a trial, and return what is known of it."""
    from curate.models.loading import unload
    from curate.models.measure import measure
    from curate.models.template import encoder

    close_scorers()
    unload(idle=True)
    table = store.read_table(".curate", "trials", f"{key}.parquet")
    rows: list[Row] = [
        (np.array(ids, dtype=np.int64), np.array(mask, dtype=bool))
        for ids, mask in zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True)
    ]
    began = time.perf_counter()
    lm, account = _trained(store, setting, key, rows, epochs, seed)
    trained = time.perf_counter()
    try:
        examples = store.read_table(".curate", "held-out", f"{setting.examples}.parquet")
        coder = encoder(setting.model, template=setting.template, turns="last")
        measured = measure(lm, coder, examples, asking=setting.asking)
    finally:
        lm.close()
    account |= {
        "seconds_training": round(trained - began, 3),
        "seconds_measuring": round(time.perf_counter() - trained, 3),
    }
    store.write_table(measured, "trials", f"{key}.parquet")
    store.write_json(account, "trials", f"{key}.json")  # last: it says that the trial is done
    store.remove(".curate", "trials", f"{key}.parquet")
    store.remove(".curate", "training", key)
    return account


def _trained(
    store: Store, setting: Setting, key: str, rows: list[Row], epochs: int, seed: int
) -> tuple[TransformersLM, dict[str, Any]]:
    """Return the proxy, and what its training was; untrained where there are no rows."""
    from curate.models.proxy import train
    from curate.models.transformers_lm import TransformersLM

    if not rows:
        return TransformersLM(setting.model), {"rows": 0, "steps": 0, "tokens": 0, "diverged": None, "flops": 0.0}
    settings = replace(setting.training, epochs=epochs, seed=seed)
    directory = store.path(".curate", "training", key) if store.local else None
    found = train(setting.model, rows, settings, directory=directory)
    return found.lm, {
        "rows": len(rows),
        "steps": found.steps,
        "tokens": found.tokens,
        "scored": found.scored,
        "epochs": found.epochs,
        "first_loss": float(found.losses[0]) if found.losses.size else None,
        "last_loss": float(found.losses[-1]) if found.losses.size else None,
        "seconds_steps": round(found.seconds, 3),
        "flops": found.flops,
        "diverged": found.diverged,
        "unpacked": found.unpacked,
        "cut": found.cut,
        "left_out": found.left_out,
        "resumed": found.resumed,
    }
