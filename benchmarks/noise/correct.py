"""What corrections make of planted errors: how many are fixed, how many good rows are harmed, by kind of noise.

    python benchmarks/noise/correct.py            # the shipped model
    python benchmarks/noise/correct.py --quick    # a few rows

20% of the rows that can carry a kind of noise are planted; ``clear.yaml`` runs on them.  A new answer is held against
the row's answer before anything was planted: it *fixes* a planted row if half or more of their words are the same
(Jaccard), and *harms* another row if fewer are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
from run import HERE, ROOT, read_pool

from curate.document import load_yaml
from curate.noise import KINDS, plant
from curate.numerics.agreement import jaccard
from curate.pipelines import ready
from curate.pipelines.run import Run
from curate.recipe import Recipe


def answer(row: dict[str, Any]) -> str:
    return next(m["content"] for m in reversed(row["messages"]) if m["role"] == "assistant")


def corrected(table: Any, folder: Path, model: str, eta: float, tokens: int) -> dict[str, Any]:
    """Run CLEAR on a table; return what became of each row by its number, and the account of the correction."""
    messages = [{"messages": m, "n": i} for i, m in enumerate(table.column("messages").to_pylist())]
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in messages))
    document, _ = load_yaml(ready.text("clear"), Path("clear.yaml"))
    document |= {"name": "noise", "sources": [{"path": str(folder / "pool.jsonl"), "id": "n"}], "report": False}
    document["scorers"]["samples"] |= {"model": model, "new_tokens": tokens}
    document["scorers"]["reflection"]["model"] = model
    document["correct"][0]["candidates"] |= {"model": model, "new_tokens": tokens}
    document["correct"][0] |= {"verdict": {"model": model}, "eta": eta}
    job = Run(Recipe.from_dict(document, folder), folder / "run", quiet=True)
    manifest = job.execute()
    (step,) = [s for s in manifest["select"] if s.get("kind") == "correction"]
    ledger = pl.read_parquet(f"{job.store.root}/decisions/*.parquet").select("id", "decision")
    sidecars = pl.read_parquet(f"{job.store.root}/corrections/*/*.parquet").select("id", "action", "new")
    joined = ledger.join(sidecars, on="id", how="left")
    rows = {int(r["id"]): r for r in joined.iter_rows(named=True)}
    return {"rows": rows, "rules": step["rules"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", default=str(ROOT / "examples/pool/*.parquet"))
    parser.add_argument("--model", default=str(ROOT / "examples/model"))
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--eta", type=float, default=0.8)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "correct.json")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.tokens = 12, 8
    clean = read_pool(args.pool, args.rows)
    result: dict[str, Any] = {"rows": args.rows, "tokens": args.tokens, "eta": args.eta, "kinds": {}}
    for kind in KINDS[:1] if args.quick else KINDS:
        planted = plant(clean, kind, 0.2, seed=0)
        with tempfile.TemporaryDirectory() as folder:
            found = corrected(planted.examples, Path(folder), args.model, args.eta, args.tokens)
        before = [answer(row) for row in clean.to_pylist()]
        names = ("planted", "good", "planted kept", "good kept", "fixed", "planted replaced", "harmed")
        counts = dict.fromkeys(names, 0)
        for i, bad in enumerate(planted.truth.tolist()):
            row = found["rows"].get(i)
            if row is None or row["decision"] in ("duplicate", "rejected"):
                continue
            new = row["new"] if row["decision"] == "corrected" else None
            alike = new is not None and jaccard([new], [before[i]])[0] >= 0.5
            what = "planted" if bad else "good"
            counts[what] += 1
            counts[f"{what} kept"] += row["decision"] in ("kept", "corrected")
            counts["planted replaced"] += bad and new is not None
            counts["fixed"] += bad and alike
            counts["harmed"] += not bad and new is not None and not alike
        result["kinds"][kind] = {**counts, "rules": found["rules"]}
        print(kind, result["kinds"][kind], flush=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
