"""Which scorers notice planted noise, and which components of confidence know a right solution from a wrong one.

    python benchmarks/noise/run.py                                  # about ten minutes on two cores
    python benchmarks/noise/run.py --quick                          # a few rows, to see that it runs
    python benchmarks/noise/run.py --solutions FOLDER               # and solutions that are known to be right or wrong

Noise is planted by ``curate.noise``.  Every scorer of the package has its row, or a word on why it has none.  The
folder of solutions holds Parquet files with the columns prompt_id, messages_prompt, response, generator and is_correct.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import curate
from curate import registry
from curate.base import Column, Scorer
from curate.example import EXAMPLE_SCHEMA, keys
from curate.noise import KINDS, Kind, detect, plant
from curate.seeding import rng_for
from curate.selectors.combine import combine

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SHARES = (0.1, 0.2, 0.4)
OTHER = {
    "hidden-states": "makes vectors",
    "gradients": "makes vectors",
    "hashed-ngrams": "makes vectors",
    "minilm": "makes vectors",
    "sentence": "makes vectors; as minilm",
    "minhash": "makes signatures",
    "text-digest": "makes keys",
    "samples": "reads the prompt only; consistency reads it",
    "label": "tells what the row's source says",
    "column": "tells what the row's source says",
    "language": "tells a label",
    "attribution": "needs targets",
    "dsir": "needs targets",
    "bm25": "needs targets",
    "contamination": "needs benchmarks",
    "reward-gap": "needs a reward model, of which none is shipped",
    "clusters": "reads vectors of another stage",
}
"""Scorers of the package that give a single row no score, or none without more than the row."""

Scores = dict[str, NDArray[np.float64]]


class Random(Scorer):
    """A number of no meaning, drawn from the row's content: what chance looks like."""

    name = "random"
    reads = ("content_key",)
    columns = (Column("random", "none", True),)

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        return {"random": [rng_for(0, "random", key.hex()).random() for key in examples["content_key"].to_pylist()]}


def scorers(model: str, quick: bool) -> dict[str, Callable[[], Scorer]]:
    """Return what each scorer of the package is built as; consistency stands once for each similarity."""
    plain = {"text-heuristics": registry.find("scorers", "text-heuristics")}
    reading = {
        name: (lambda name=name: registry.find("scorers", name)(model=model))
        for name in (
            "length",
            "likelihood",
            "grape",
            "ifd",
            "donod",
            "response-entropy",
            "nuclear-norm",
            "self-reflection",
        )
    }
    judge = registry.find("scorers", "judge")  # the rubric of complexity reads no answer, and is blind to noise in it
    consistency = registry.find("scorers", "consistency")
    similarities = ["jaccard", "exact", "numeric"] + ([] if quick else ["cosine"])
    agreeing = {
        f"consistency ({similarity})": (lambda similarity=similarity: consistency(of="samples", similarity=similarity))
        for similarity in similarities
    }
    return {"random": Random, **plain, **reading, **agreeing, "judge": lambda: judge(model=model)}


def read_pool(path: str, rows: int) -> pa.Table:
    """Return the first rows of a pool in the order of their content keys: a sample that no order of files changes."""
    pool = curate.read(path).examples()
    keys_ = pool.column("content_key").to_pylist()
    first = dict(zip(reversed(keys_), reversed(range(len(keys_))), strict=True))  # copies once
    return pool.take(pa.array([first[key] for key in sorted(first)][:rows])).combine_chunks()


def columns_of(scorer: Scorer, table: pa.Table) -> Scores:
    """Return each number that a scorer gives, higher is better; one without a direction as it is."""
    found = scorer.score(table.select(list(scorer.reads)))
    out = {}
    for column in scorer.columns:
        if column.vector is None and column.dtype != "string":
            values = found[column.name].cast(pa.float64()).to_numpy().copy()
            out[column.name] = -values if column.higher_is_better is False else values
    return out


def sampled(model: str, table: pa.Table, samples: int, tokens: int) -> pa.Array:
    """Return the sampled answers of each row."""
    scorer = registry.find("scorers", "samples")(model=model, samples=samples, new_tokens=tokens)
    return scorer.score(table)["answers"].combine_chunks()


def on_the_pool(args: argparse.Namespace) -> dict[str, Any]:
    """Return, for each column of each scorer, kind and share, how well it tells the planted rows."""
    pool = read_pool(args.pool, args.rows)
    answers = sampled(args.model, pool, args.samples, args.tokens)
    planted = {kind: plant(pool, kind, 1.0, seed=args.seed) for kind in KINDS}
    truths = {(kind, share): plant(pool, kind, share, seed=args.seed).truth for kind in KINDS for share in SHARES}
    rows: dict[str, Any] = {}
    confidence: dict[str, Scores] = {}
    for name, make in scorers(args.model, args.quick).items():
        began = time.perf_counter()
        scorer = make()
        version = {"clean": pool, **{kind: planted[kind].examples for kind in KINDS}}
        found = {what: columns_of(scorer, table.append_column("answers", answers)) for what, table in version.items()}
        scorer.close()
        for column in found["clean"]:
            known = next(c for c in scorer.columns if c.name == column)
            each = {what: values[column] for what, values in found.items()}
            rows[f"{name}.{column}"] = {
                "direction": {True: "higher", False: "lower", None: "none"}[known.higher_is_better],
                "detection": detections(each, planted, truths),
            }
        if name == "consistency (jaccard)":
            confidence["consistency"] = {what: values["consistency"] for what, values in found.items()}
        if name == "self-reflection":
            confidence["certainty"] = {what: values["certainty"] for what, values in found.items()}
        print(
            f"{name}: {len(version)} versions of {pool.num_rows} rows, {time.perf_counter() - began:.1f} s", flush=True
        )
    each = {what: summed({n: values[what] for n, values in confidence.items()}) for what in ("clean", *KINDS)}
    rows["confidence (0.7 consistency + 0.3 certainty)"] = {
        "direction": "higher",
        "detection": detections(each, planted, truths),
    }
    done = {*scorers(args.model, args.quick), "consistency", "samples"}
    others = {name: OTHER.get(name, "was not run") for name in registry.names("scorers") if name not in done}
    return {
        "rows": pool.num_rows,
        "able": {kind: int(planted[kind].able.sum()) for kind in KINDS},
        "scores": rows,
        "without a score": others,
    }


def summed(parts: Scores) -> NDArray[np.float64]:
    return combine(parts, method="mean", weights={"consistency": 0.7, "certainty": 0.3}, missing="reweight")


def detections(each: Mapping[str, NDArray[np.float64]], planted: Any, truths: Any) -> dict[str, dict[str, Any]]:
    """Return the detection at each share of each kind, among the rows that can carry it."""
    out: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        able = planted[kind].able
        out[kind] = {}
        for share in SHARES:
            truth = truths[kind, share]
            out[kind][f"{share:.0%}"] = rounded(detect(np.where(truth, each[kind], each["clean"])[able], truth[able]))
    return out


def rounded(found: Any) -> dict[str, Any]:
    pairs = dataclasses.asdict(found).items()
    return {k: v if isinstance(v, int) else None if v != v else round(v, 4) for k, v in pairs}


def on_solutions(args: argparse.Namespace) -> dict[str, Any]:
    """Return how well each component of confidence tells wrong solutions from right ones, beside plain columns."""
    table = pa.concat_tables([pq.read_table(path) for path in sorted(Path(args.solutions).glob("*.parquet"))])
    rows = [r for r in table.to_pylist() if r["is_correct"] is not None and r["generator"] != "ground_truth"]
    wanted = set(sorted({r["prompt_id"] for r in rows})[: args.prompts])
    rows = [r for r in rows if r["prompt_id"] in wanted]
    told = []
    for i, row in enumerate(rows):
        messages = [*row["messages_prompt"], {"role": "assistant", "content": row["response"]}]
        content_key, prompt_key = keys(messages, None)
        told.append(
            {"id": str(i), "messages": messages, "source": row["generator"], "content_key": content_key,
             "prompt_key": prompt_key, "chars": 0, "file": "", "row": i, "part": -1}
        )  # fmt: skip
    examples = pa.Table.from_pylist(told, schema=EXAMPLE_SCHEMA)
    wrong = np.array([not r["is_correct"] for r in rows])
    examples = examples.append_column("answers", sampled(args.model, examples, args.samples, 4 * args.tokens))
    out: dict[str, Any] = {}
    parts: Scores = {}
    chosen = ("random", "length", "likelihood", "self-reflection", "consistency (jaccard)", "consistency (numeric)")
    for name in chosen:
        scorer = scorers(args.model, args.quick)[name]()
        for column, values in columns_of(scorer, examples).items():
            out[f"{name}.{column}"] = rounded(detect(values, wrong))
            if (name, column) in (("self-reflection", "certainty"), ("consistency (numeric)", "consistency")):
                parts[column] = values
        scorer.close()
        print(f"solutions, {name}", flush=True)
    out["confidence (0.7 consistency (numeric) + 0.3 certainty)"] = rounded(detect(summed(parts), wrong))
    return {"rows": len(rows), "wrong": int(wrong.sum()), "prompts": len(wanted), "scores": out}


def table(found: dict[str, Any], share: str = "20%") -> str:
    """Return the AUROC of every score and, in brackets, the precision at the true share, as a Markdown table."""
    kinds: tuple[Kind, ...] = KINDS
    lines = ["| score | " + " | ".join(kinds) + " |", "|---|" + "---:|" * len(kinds)]
    for name, row in found["scores"].items():
        if row["direction"] == "none":
            continue  # lengths and the like: in the JSON
        cells = [row["detection"][kind][share] for kind in kinds]
        told = ["–" if c["auroc"] is None else f"{c['auroc']:.2f} ({c['precision']:.2f})" for c in cells]
        lines.append(f"| `{name}` | " + " | ".join(told) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", default=str(ROOT / "examples/pool/*.parquet"))
    parser.add_argument("--model", default=str(ROOT / "examples/model"))
    parser.add_argument("--solutions", help="folder of solutions with is_correct")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--prompts", type=int, default=40, help="of the solutions")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48, help="of a sampled answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.prompts, args.samples, args.tokens = 24, 4, 2, 8
    began = time.perf_counter()
    load = os.getloadavg()[0]
    result: dict[str, Any] = {"pool": on_the_pool(args)}
    print(table(result["pool"]))
    if args.solutions:
        result["solutions"] = on_solutions(args)
    result["settings"] = {k: getattr(args, k) for k in ("rows", "prompts", "samples", "tokens", "seed")}
    result["machine"] = {"processor": platform.machine(), "cores": os.cpu_count(), "load before": round(load, 2)}
    result["seconds"] = round(time.perf_counter() - began, 1)
    if not args.quick or args.out != HERE / "results.json":
        args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{args.out.name}: {result['seconds']} s")


if __name__ == "__main__":
    main()
