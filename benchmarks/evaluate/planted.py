"""Does the harness find what was planted?  An oracle on noise, dedup on copies, and random against random.

    python benchmarks/evaluate/planted.py            # the shipped model
    python benchmarks/evaluate/planted.py --quick

noise   30% of the answers are those of other rows; the oracle keeps none of them.  It must beat a random draw.
copies  a third of the rows stands four times more, each time with another mark at its end; dedup keeps one of each.
        It must beat a random draw at equal tokens.
null    random draws against other random draws, as many as ``--draws`` makes pairs of: no difference is to be found in
        95% of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import curate
from curate.evaluation.evaluate import Evaluation
from curate.noise import plant
from curate.numerics.evidence import Results, evidence
from curate.pipelines.run import Run
from curate.recipe import Recipe
from curate.seeding import rng_for

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    with (folder / "pool.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def evaluated(folder: Path, args: argparse.Namespace, select: list[dict[str, Any]], scorers: dict[str, Any]) -> Any:
    document = {"name": "chosen", "sources": [{"path": "pool.jsonl"}], "scorers": scorers, "select": select}
    job = Run(Recipe.from_dict({**document, "report": False}, folder), folder / "run", quiet=True)
    job.execute()
    changes = {
        "model": args.model,
        "training": {"epochs": args.epochs, "tokens_per_step": 1024},
        "budgets": [args.rows],
        "seeds": args.seeds,
        "baselines": ["random"],
        "held_out": args.held_out,
        "generate": False,
    }
    return Evaluation([str(job.store.root)], None, changes, quiet=True).execute()


def told(outcome: Any) -> dict[str, Any]:
    out = {}
    for c in outcome.comparisons:
        s, k = c.evidence.place("chosen"), c.evidence.baseline("random")
        loss = c.evidence.loss
        out[c.at.equal] = {
            "gain": float(loss.gain[s, k, -1]),
            "half": float(loss.half[s, k, -1]),
            "p": float(loss.p[s, k, -1]),
            "rows": c.shares["chosen"][0],
            "rows of random": c.shares["random"][0],
        }
    return out


def conversations(pool: Any) -> list[list[dict[str, Any]]]:
    return [[{k: m[k] for k in ("role", "content")} for m in row] for row in pool.column("messages").to_pylist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "examples/model"))
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--pool", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--held-out", type=int, default=30)
    parser.add_argument("--draws", type=int, default=12, help="of the null test: a multiple of the seeds")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "planted.json")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.pool, args.seeds, args.held_out, args.draws = 10, 120, 2, 4, 4
    began = time.perf_counter()
    pool = curate.read(str(ROOT / "examples/pool/*.parquet")).examples()
    drawn = rng_for(0, "planted", "pool").permutation(pool.num_rows)[: args.pool]
    pool = pool.take(drawn)
    sources = pool.column("source").to_pylist()
    result: dict[str, Any] = {k: v for k, v in vars(args).items() if k not in ("out", "quick", "model")}

    planted = plant(pool, "shuffled", 0.3, seed=0)
    with tempfile.TemporaryDirectory() as name:
        rows = zip(conversations(planted.examples), sources, planted.truth.tolist(), strict=True)
        write(Path(name), [{"messages": m, "source": s, "good": int(not bad)} for m, s, bad in rows])
        select = [{"use": "threshold", "on": "good", "min": 1}, {"use": "random", "budget": 2 * args.rows}]
        scorers = {"good": {"use": "column", "column": "good", "higher_is_better": True}}
        result["noise"] = told(evaluated(Path(name), args, select, scorers))
    print("noise", result["noise"], flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [{"messages": m, "source": s} for m, s in zip(conversations(pool), sources, strict=True)]
        for row in rows[: len(rows) // 3]:
            for mark in ("…", " .", "!", " --"):
                *before, last = row["messages"]
                copy = [*before, {**last, "content": last["content"] + mark}]
                rows.append({**row, "messages": copy})
        write(folder, rows)
        select = [{"use": "near-duplicates", "features": "signatures"}, {"use": "random", "budget": 2 * args.rows}]
        result["copies"] = told(evaluated(folder, args, select, {"signatures": {"use": "minhash"}}))
    print("copies", result["copies"], flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, [{"messages": m, "source": s} for m, s in zip(conversations(pool), sources, strict=True)])
        seeds, args.seeds = args.seeds, args.draws
        found = evaluated(folder, args, [{"use": "random", "budget": args.rows}], {})
        c = next(c for c in found.comparisons if c.at.equal == "rows")
        result["null"] = null(found, c, seeds)
    print("null", result["null"], flush=True)
    result["seconds"] = round(time.perf_counter() - began, 1)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


def null(outcome: Any, comparison: Any, seeds: int) -> dict[str, Any]:
    """Hold groups of random draws against each other."""
    from curate.pipelines.store import Store

    store, tasks = Store(outcome.place), list(comparison.evidence.tasks)
    trials = [t["trial"] for t in outcome.trials if t["selection"] == "random" and t["equal"] == "rows"]
    tables = [store.read_table("trials", f"{key}.parquet") for key in trials]
    nll = np.array([t.column("nll").to_numpy() for t in tables])
    task = np.array([tasks.index(name) for name in tables[0].column("task").to_pylist()])
    tokens = tables[0].column("tokens").to_numpy().astype(float)
    groups = [list(range(i, i + seeds)) for i in range(0, len(trials) - seeds + 1, seeds)]
    p = []
    for a, b in itertools.combinations(groups, 2):
        found = evidence(Results(["a", "b"], tasks, task, tokens, np.stack([nll[a], nll[b]])), baselines=["a"])
        p.append(float(found.loss.p[1, 0, -1]))
    return {"comparisons": len(p), "differences at 5%": int((np.array(p) <= 0.05).sum()), "p": p}


if __name__ == "__main__":
    main()
