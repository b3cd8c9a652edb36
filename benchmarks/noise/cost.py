"""What confidence costs, against the plain way on the same engine: one prompt, one answer, one option at a time.

    python benchmarks/noise/cost.py            # four minutes on two cores
    python benchmarks/noise/cost.py --quick    # a few rows

Certainties of the two ways agree to 1e-4, and the first samples are the same texts but for one in twenty, where
rounding may decide a draw; both are checked before anything is told.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from run import HERE, ROOT, read_pool

from curate.models import asking
from curate.models.base import CausalLM, Generation, Sampling
from curate.models.transformers_lm import TransformersLM
from curate.scorers.samples import Samples
from curate.scorers.self_reflection import SelfReflection


class Plain(TransformersLM):
    """One row at a time; nothing that two of them begin with is kept.  Counts the tokens that go through the model."""

    read = 0

    def generate(self, prompts: Sequence[NDArray[np.integer]], sampling: Sampling) -> list[list[Generation] | None]:
        out: list[list[Generation] | None] = []
        for prompt in prompts:
            texts = [super(Plain, self).generate([prompt], _one(sampling, k)) for k in range(sampling.n)]
            out.append([its[0][-1] for its in texts if its[0] is not None])
            self.read += sum(prompt.size + its[0][-1].tokens for its in texts if its[0] is not None)
        return out

    def option_logprobs(
        self, prompts: Sequence[NDArray[np.integer]], options: Sequence[Sequence[NDArray[np.integer]]]
    ) -> list[NDArray[np.float64] | None]:
        out: list[NDArray[np.float64] | None] = []
        for prompt, its in zip(prompts, options, strict=True):
            each = [super(Plain, self).option_logprobs([prompt], [[option]])[0] for option in its]
            self.read += sum(prompt.size + option.size for option in its)
            out.append(None if any(x is None for x in each) else np.concatenate([x for x in each if x is not None]))
        return out


def _one(sampling: Sampling, k: int) -> Sampling:
    """Return what draws text k alone, as a loop over seeds would: its stream is not that of text k of a batch."""
    return Sampling(
        max_tokens=sampling.max_tokens, temperature=sampling.temperature, top_p=sampling.top_p, seed=sampling.seed + k
    )


def timed(scorer: Any, table: Any, lm: CausalLM | None) -> tuple[Any, float]:
    """Return the scores and the seconds that they took, without loading; ``lm`` in the place of the scorer's own."""
    own = asking.load
    if lm is not None:
        asking.load = lambda *_, **__: lm  # type: ignore[assignment]
    try:
        scorer.open()
        scorer.score(table.slice(0, 2))  # warm
        began = time.perf_counter()
        return scorer.score(table), time.perf_counter() - began
    finally:
        asking.load = own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", default=str(ROOT / "examples/pool/*.parquet"))
    parser.add_argument("--model", default=str(ROOT / "examples/model"))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "cost.json")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.samples, args.tokens = 6, 3, 8
    load = os.getloadavg()[0]
    table = read_pool(args.pool, args.rows)
    made = {
        "samples": lambda: Samples(model=args.model, samples=args.samples, new_tokens=args.tokens),
        "self-reflection": lambda: SelfReflection(model=args.model),
    }
    result: dict[str, Any] = {"rows": args.rows, "samples": args.samples, "tokens": args.tokens}
    for name, make in made.items():
        ours, seconds = timed(make(), table, None)
        plain = Plain(args.model, share=False)
        theirs, slow = timed(make(), table, plain)
        if name == "self-reflection":
            a, b = (x["certainty"].drop_null().to_numpy() for x in (ours, theirs))
            assert a.size == b.size and np.abs(a - b).max() < 1e-4, "the two ways disagree"
        else:  # text 0 of a prompt has one stream in both ways
            a, b = ([json.loads(x)[0]["text"] for x in t["answers"].drop_null().to_pylist()] for t in (ours, theirs))
            same = sum(x == y for x, y in zip(a, b, strict=True))
            assert same >= 0.95 * len(a), f"{same} of {len(a)} first samples are the same"
        n = table.num_rows - ours["reason"].drop_null().length()
        result[name] = {
            "rows/s": round(n / seconds, 3),
            "plain rows/s": round(n / slow, 3),
            "times as fast": round(slow / seconds, 2),
            "plain tokens through the model, a row": round(plain.read / max(1, n + 2)),
        }
        print(name, result[name], flush=True)
    result["machine"] = {"cores": os.cpu_count(), "load before": round(load, 2)}
    if not args.quick:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
