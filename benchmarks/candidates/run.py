"""What GRAPE's choice does to quality and to length, among candidates whose quality is known.

    python benchmarks/candidates/run.py --candidates FOLDER     # three quarters of an hour on one core

Of each prompt's candidates one is chosen: by GRAPE's score under a base model, with its guards and without, at random,
by length, and by the judge itself (the best there is).  The folder holds sets of Parquet files with the columns
prompt_id, messages_prompt, response, generator, and judge_preference or is_correct.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curate import models
from curate.example import MESSAGE_TYPE
from curate.numerics.order import fractional_ranks
from curate.scorers.grape import GRAPE
from curate.scorers.text_heuristics import repetition
from curate.seeding import rng_for
from curate.selectors import BestPerPrompt

ROOT = Path(__file__).resolve().parents[2]
SETS = ("alpaca_eval", "gsm8k_solutions", "instructgpt_qa", "self_instruct_predictions")
OUT = {"gpt4_1106_preview", "gpt4_gamed", "ground_truth"}
"""What the judge compares with, a system made to fool the judge, and the reference answers."""
SEEDS, BLOCK = 10, 512


def read(folder: Path, prompts: int | None) -> pa.Table:
    """Return the candidates of a set that are answers of a system, of the first ``prompts`` prompts."""
    table = pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("*.parquet"))])
    named = zip(table["generator"].to_pylist(), table["response"].to_pylist(), strict=True)
    table = table.filter(pa.array([generator not in OUT and bool(response) for generator, response in named]))
    if prompts is not None:
        first = set(sorted(set(table["prompt_id"].to_pylist()))[:prompts])
        table = table.filter(pa.array([p in first for p in table["prompt_id"].to_pylist()]))
    return table


def scored(table: pa.Table, model: str, dtype: str) -> dict[str, pa.Table]:
    """Return GRAPE's scores of every row, without its guards and with them, from one pass."""
    conversations = [
        [*prompt, {"role": "assistant", "content": response}]
        for prompt, response in zip(table["messages_prompt"].to_pylist(), table["response"].to_pylist(), strict=True)
    ]
    nothing = pa.nulls(table.num_rows, pa.string())
    examples = pa.table(
        {"messages": pa.array(conversations, pa.list_(MESSAGE_TYPE)), "tools": nothing, "extra": nothing}
    )
    common: dict[str, Any] = {"model": model, "dtype": dtype}
    free = GRAPE(**common, drop_cut_off=False, max_repetition=None, min_tokens=None)
    guarded = GRAPE(**common)
    parts = []
    for start in range(0, table.num_rows, BLOCK):
        parts.append(GRAPE.score_together([free, guarded], examples.slice(start, BLOCK)))
        print(f"{min(start + BLOCK, table.num_rows):,} of {table.num_rows:,}", flush=True)
    return {
        name: pa.concat_tables(part) for name, part in zip(("free", "guarded"), zip(*parts, strict=True), strict=True)
    }


def numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return column.cast(pa.float64()).to_numpy()


def compare(table: pa.Table, scores: dict[str, pa.Table]) -> dict[str, Any]:
    """Choose one candidate a prompt by each way, over the prompts where every way can choose among two or more."""
    worth = "judge_preference" if table["judge_preference"].null_count < table.num_rows else "is_correct"
    known = table[worth].null_count < table.num_rows
    quality = numbers(table[worth]) if known else np.full(table.num_rows, np.nan)
    prompts = np.unique(table["prompt_id"].to_pylist(), return_inverse=True)[1]
    chars = np.array([len(r) for r in table["response"].to_pylist()], dtype=np.float64)
    repeated = repetition(table["response"].to_pylist())
    value = {name: numbers(scores[name]["mean_logprob"]) for name in scores}
    able = {name: np.isfinite(v) & (np.isfinite(quality) | (not known)) for name, v in value.items()}
    enough = np.bincount(prompts[able["guarded"]], minlength=prompts.max() + 1) >= 2
    rows = {name: np.flatnonzero(a & enough[prompts]) for name, a in able.items()}

    def choose(x: NDArray[np.float64], among: str = "free", *, largest: bool = True) -> NDArray[np.int64]:
        at = rows[among]
        return at[BestPerPrompt(largest=largest).select(x[at], groups=prompts[at]).indices]

    draws = [rng_for(seed, "benchmark", "candidates").random(table.num_rows) for seed in range(SEEDS)]
    picks: dict[str, list[NDArray[np.int64]]] = {
        "GRAPE, without guards": [choose(value["free"])],
        "GRAPE": [choose(value["guarded"], "guarded")],
        "GRAPE turned round (least likely)": [choose(value["guarded"], "guarded", largest=False)],
        "random": [choose(x) for x in draws],
        "random, behind the guards": [choose(x, "guarded") for x in draws],
        "longest": [choose(chars)],
        "shortest": [choose(chars, largest=False)],
    }
    if known:
        picks["the judge's own choice"] = [choose(quality)]
    generator = np.array(table["generator"].to_pylist())
    ways = {}
    for name, found in picks.items():
        means = [float(quality[p].mean()) for p in found]
        ways[name] = {
            "quality": round(float(np.mean(means)), 4) if known else None,
            "quality_sd_over_seeds": round(float(np.std(means, ddof=1)), 4) if known and len(found) > 1 else None,
            "chars_mean": round(float(np.mean([chars[p].mean() for p in found]))),
            "chars_median": round(float(np.mean([np.median(chars[p]) for p in found]))),
            "repetition_above_half": round(float(np.mean([(repeated[p] > 0.5).mean() for p in found])), 4),
            "most_from": dict(Counter(generator[found[0]].tolist()).most_common(4)),
        }
    free, guarded = scores["free"]["reason"].to_pylist(), scores["guarded"]["reason"].to_pylist()
    stopped = Counter(g.partition(":")[0] for f, g in zip(free, guarded, strict=True) if f is None and g is not None)
    by_generator = Counter(
        x for f, g, x in zip(free, guarded, generator.tolist(), strict=True) if f is None and g is not None
    )
    return {
        "rows": table.num_rows,
        "generators": len(set(generator.tolist())),
        "prompts": int(enough.sum()),
        "quality_is": worth if known else None,
        "without_a_score": dict(Counter(r.partition("=")[0] for r in free if r is not None)),
        "stopped_by_a_guard": dict(stopped),
        "stopped_most_of": dict(by_generator.most_common(8)),
        "within_prompts_spearman_of_the_score": {
            "with length": within(value["free"], chars, prompts, rows["free"]),
            "with quality": within(value["free"], quality, prompts, rows["free"]) if known else None,
        },
        "chosen": ways,
    }


def within(x: NDArray[np.float64], y: NDArray[np.float64], groups: NDArray[np.int64], rows: NDArray[np.int64]) -> float:
    """Return the mean over prompts of Spearman's ρ between x and y; prompts where one is constant count for nothing."""
    found = []
    order = rows[np.argsort(groups[rows], kind="stable")]
    for own in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        a, b = fractional_ranks(x[own]), fractional_ranks(y[own])
        if a.std() > 0 and b.std() > 0:
            found.append(float(np.corrcoef(a, b)[0, 1]))
    return round(float(np.mean(found)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--prompts", type=int, help="the first so many prompts of each set [default: all]")
    parser.add_argument("--model", default=str(ROOT / "examples" / "model"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--keep", type=Path, help="folder that keeps the scores, and gives them back the next time")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    args = parser.parse_args()

    results: dict[str, Any] = {"model": models.identify(args.model), "dtype": args.dtype, "sets": {}}
    for name in args.sets:
        table = read(args.candidates / name, args.prompts)
        kept = {part: args.keep / f"{name}-{part}.parquet" for part in ("free", "guarded")} if args.keep else {}
        if kept and all(path.exists() for path in kept.values()):
            scores = {part: pq.read_table(path) for part, path in kept.items()}
        else:
            scores = scored(table, args.model, args.dtype)
            for part, path in kept.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(scores[part], path)
        results["sets"][name] = compare(table, scores)
        print(name, json.dumps(results["sets"][name], indent=1))
    args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
