"""Does the harness find what was planted?  An oracle on noise, dedup on copies, and random against random.

    python benchmarks/evaluate/planted.py            # the shipped model
    python benchmarks/evaluate/planted.py --quick

noise   30% of the answers are those of other rows; the oracle keeps none of them.  It must beat a random draw.
copies  one row in twenty stands forty times more, each time with another mark at its end; dedup keeps one of each.  It
        must beat a random draw at equal tokens.
null    three random draws against three others, a thousand times, of as many draws as ``--draws`` says: no difference
        is to be found in 95% of them.
"""

from __future__ import annotations

import argparse
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
PAIRS = 1000
MARKS = [a + b for a in "!?.,;:~" for b in "!?.,;:~"][:40]
ROOT = HERE.parents[1]


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    with (folder / "pool.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def evaluated(folder: Path, args: argparse.Namespace, select: list[dict[str, Any]], scorers: dict[str, Any]) -> Any:
    """Make a selection of the pool in a folder, and hold it against random on rows that are as they were."""
    document = {"name": "chosen", "sources": [{"path": "pool.jsonl"}], "scorers": scorers, "select": select}
    job = Run(Recipe.from_dict({**document, "report": False}, folder), folder / "run", quiet=True)
    job.execute()
    changes = {
        "model": args.model,
        "training": {"epochs": args.epochs, "tokens_per_step": 1024},
        "budgets": [args.rows],
        "seeds": args.seeds,
        "baselines": ["random"],
        "equal": ["tokens"],
        "targets": {"sets": {path.stem: {"path": str(path)} for path in sorted(args.targets.glob("*.jsonl"))}},
        "generate": False,
    }
    return Evaluation([str(job.store.root)], None, changes, quiet=True).execute()


def write_targets(folder: Path, rows: Any, most: int) -> None:
    """Write rows that no pool here holds, so many of each source, to measure on."""
    by_source: dict[str, list[dict[str, Any]]] = {}
    for messages, source in zip(conversations(rows), rows.column("source").to_pylist(), strict=True):
        its = by_source.setdefault(source, [])
        if len(its) < most:
            its.append({"messages": messages})
    for source, its in by_source.items():
        if len(its) == most:
            (folder / f"{source}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in its))


def told(outcome: Any) -> dict[str, Any]:
    (c,) = outcome.comparisons
    s, k = c.evidence.place("chosen"), c.evidence.baseline("random")
    loss = c.evidence.loss
    return {
        "tokens": c.at.tokens,
        "gain": float(loss.gain[s, k, -1]),
        "half": float(loss.half[s, k, -1]),
        "p": float(loss.p[s, k, -1]),
        "rows": c.shares["chosen"][0],
        "rows of random": c.shares["random"][0],
    }


def conversations(pool: Any) -> list[list[dict[str, Any]]]:
    return [[{k: m[k] for k in ("role", "content")} for m in row] for row in pool.column("messages").to_pylist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "examples/model"))
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--pool", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--held-out", type=int, default=20)
    parser.add_argument("--draws", type=int, default=24, help="of the null test: twice the seeds, or more")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "planted.json")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.pool, args.seeds, args.held_out, args.draws = 10, 120, 2, 4, 6
    began = time.perf_counter()
    pool = curate.read(str(ROOT / "examples/pool/*.parquet")).examples()
    drawn = rng_for(0, "planted", "pool").permutation(pool.num_rows)[: args.pool]
    left = pool.take(rng_for(0, "planted", "pool").permutation(pool.num_rows)[args.pool :])
    pool = pool.take(drawn)
    sources = pool.column("source").to_pylist()
    result: dict[str, Any] = {k: v for k, v in vars(args).items() if k not in ("out", "quick", "model")}
    held = tempfile.TemporaryDirectory()
    args.targets = Path(held.name)
    write_targets(args.targets, left, args.held_out)

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
        for row in rows[: len(rows) // 20]:
            for mark in MARKS:
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
        result["null"] = null(found, found.comparisons[0], seeds)
    print("null", result["null"], flush=True)
    result["seconds"] = round(time.perf_counter() - began, 1)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


def null(outcome: Any, comparison: Any, seeds: int) -> dict[str, Any]:
    """Hold groups of random draws against each other."""
    from curate.pipelines.store import Store

    store, tasks = Store(outcome.place), list(comparison.evidence.tasks)
    trials = [t["trial"] for t in outcome.trials if t["selection"] == "random"]
    tables = [store.read_table("trials", f"{key}.parquet") for key in trials]
    nll = np.array([t.column("nll").to_numpy() for t in tables])
    task = np.array([tasks.index(name) for name in tables[0].column("task").to_pylist()])
    tokens = tables[0].column("tokens").to_numpy().astype(float)
    rng, p = rng_for(0, "planted", "null"), []
    for _ in range(PAIRS):
        drawn = rng.permutation(len(trials))[: 2 * seeds]
        a, b = drawn[:seeds], drawn[seeds:]
        found = evidence(Results(["a", "b"], tasks, task, tokens, np.stack([nll[a], nll[b]])), baselines=["a"])
        p.append(float(found.loss.p[1, 0, -1]))
    alarms = np.array(p) <= 0.05
    return {"draws": len(trials), "comparisons": len(p), "differences at 5%": int(alarms.sum())}


if __name__ == "__main__":
    main()
