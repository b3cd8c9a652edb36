"""Which learning rate suits a proxy: held-out loss after one pass over some rows, rate by rate.

    python benchmarks/evaluate/rates.py                         # the shipped model, all weights and an adapter
    python benchmarks/evaluate/rates.py --method lora --rates 1e-3 1e-2
    python benchmarks/evaluate/rates.py --quick --out /dev/null

Rows of the example pool, drawn at random: some are trained on, others are measured before and after (mean over their
tokens, nats).  The defaults in ``curate.models.proxy`` are the best of these.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from trainer import ROOT, some_rows

from curate.models.base import CausalLM, Row
from curate.models.proxy import Training, tokens_of, train
from curate.models.transformers_lm import TransformersLM

RATES = {"full": (3e-5, 1e-4, 3e-4, 1e-3), "lora": (3e-4, 1e-3, 3e-3, 1e-2)}


def held_out(lm: CausalLM, rows: list[Row]) -> float:
    found = lm.token_logprobs(rows)
    lm.close()
    return -float(np.concatenate([values for values in found if values is not None]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "examples" / "model"))
    parser.add_argument("--method", nargs="+", default=["full", "lora"], choices=list(RATES))
    parser.add_argument("--rates", nargs="+", type=float)
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--tokens-per-step", type=int, default=[1024, 4096], nargs="+")
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one step, one rate")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("rates.json"))
    args = parser.parse_args()
    if args.quick:
        args.tokens, args.held_out, args.max_tokens, args.rates, args.tokens_per_step = 500, 5, 64, [1e-4], [512]
    torch.set_num_threads(args.threads)

    rows = some_rows(args.held_out + args.tokens // 20, args.model, args.max_tokens)
    held, rest = rows[: args.held_out], rows[args.held_out :]
    rest = rest[: int(np.searchsorted(np.cumsum(tokens_of(rest)), args.tokens))]
    before = held_out(TransformersLM(args.model), held)
    print(f"untrained: {before:.4f} nats", flush=True)
    results = []
    for size in args.tokens_per_step:
        for method in args.method:
            for rate in args.rates or RATES[method]:
                found = train(args.model, rest, Training(method=method, rate=rate, tokens_per_step=size))
                after = held_out(found.lm, held)
                print(
                    f"{method} {size} {rate:.0e}: {after:.4f} ({after - before:+.4f}), {found.steps} steps", flush=True
                )
                its = {"method": method, "tokens_per_step": size, "rate": rate, "held_out": after}
                results.append(its | {"steps": found.steps, "tokens": found.tokens, "diverged": found.diverged})
    if args.out != Path(os.devnull):
        args.out.write_text(json.dumps({"untrained": before, "trained": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
