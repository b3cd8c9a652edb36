r"""The judge against ratings by people and by larger models: agreement, ranks, position, length; and what it costs.

    python benchmarks/judge/run.py --rated FOLDER                    # about 8 minutes on two cores
    python benchmarks/judge/run.py --rated FOLDER --model org/name --device cuda --rows 1000 --pairs 500
    python benchmarks/judge/run.py --rated FOLDER --quick            # whether it runs: a minute

FOLDER holds a folder a set, of Parquet with prompt_id (rows that belong together), messages (the last turn is the rated
answer), rating and source.  Ratings are compared within a source only, and where they are of pairs within a pair only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import rankdata

from curate import models
from curate.example import MESSAGE_TYPE
from curate.models.asking import Asker, Choice
from curate.models.prompting import load_prompt
from curate.models.transformers_lm import TransformersLM
from curate.models.verdict import Verdict, compare
from curate.scorers.judge import Judge
from curate.scorers.likelihood import TargetLikelihood
from curate.seeding import rng_for

ROOT = Path(__file__).resolve().parents[2]
OF_PAIRS = ("autoj_pairwise", "pandalm_testset", "tulu_human_preference", "lf_dpo_en", "lf_dpo_zh")
"""Sources whose ratings mean something within a prompt only."""
ABOUT_THE_QUESTION = ("oda_llm_judge_complexity",)
"""Sources that rate the question: asked with the prompt "complexity"."""
BLOCK = 64

Floats = NDArray[np.float64]


def sample(rows: pl.DataFrame, most: int) -> pl.DataFrame:
    """Return whole prompts, in an order of their own, up to so many rows."""
    prompts = rows["prompt_id"].unique().sort()
    order = prompts.gather(rng_for(0, "judge", rows["source"][0]).permutation(len(prompts)))
    ranked = rows.join(pl.DataFrame({"prompt_id": order}).with_row_index("at"), on="prompt_id").sort("at", "id")
    return ranked.head(most)


def scored(rows: pl.DataFrame, options: dict[str, Any]) -> dict[str, Floats]:
    """Return every score of the rows, NaN where there is none."""
    messages = pa.array(rows["messages"].to_list(), pa.list_(MESSAGE_TYPE))
    none = pa.nulls(rows.height, pa.string())
    table = pa.table({"messages": messages, "tools": none, "extra": none})
    prompt = "complexity" if rows["source"][0] in ABOUT_THE_QUESTION else "quality"
    judged = in_blocks(Judge(prompt=prompt, **options), table)
    likely = in_blocks(TargetLikelihood(turns="last", **options), table)
    answers = [turns[-1]["content"] for turns in rows["messages"].to_list()]
    return {
        "judge": floats(judged["rating"]),
        "judge, likeliest point": floats(judged["top"]),
        "likelihood": floats(likely["mean_logprob"]),
        "length": np.array([len(answer) for answer in answers], dtype=np.float64),
        "random": rng_for(0, "judge", "random", rows["source"][0]).random(rows.height),
        "order_gap": floats(judged["order_gap"]),
        "mass": floats(judged["mass"]),
        "tokens": floats(judged["tokens"]),
    }


def in_blocks(scorer: Any, table: pa.Table) -> pa.Table:
    parts = [scorer.score(table.slice(start, BLOCK)) for start in range(0, table.num_rows, BLOCK)]
    scorer.close()
    return pa.concat_tables(parts)


def floats(column: pa.ChunkedArray) -> Floats:
    return column.cast(pa.float64()).to_numpy()


def spearman(x: Floats, y: Floats) -> float:
    """Return the correlation of the ranks, ties at their mean; NaN where one is constant."""
    a, b = rankdata(x), rankdata(y)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float("nan")


def auroc(x: Floats, good: NDArray[np.bool_]) -> float:
    """Return P(x of a good row > x of another) + ½ P(equal); NaN where all are of one kind."""
    n, m = int(good.sum()), int((~good).sum())
    return float((rankdata(x)[good].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


def partial(xy: float, xz: float, yz: float) -> float:
    """Return the correlation of x and y with z held still, of three correlations."""
    left = (1 - xz**2) * (1 - yz**2)
    return (xy - xz * yz) / float(np.sqrt(left)) if left > 1e-12 else float("nan")


def agreement(x: Floats, rating: Floats, prompt: list[str]) -> tuple[float, int]:
    """Return the share of pairs of one prompt, rated apart, that x orders as the ratings do (ties half), and their
    number."""
    right, pairs = 0.0, 0
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(prompt):
        groups.setdefault(name, []).append(i)
    for rows in groups.values():
        for place, i in enumerate(rows):
            for j in rows[:place]:
                if rating[i] != rating[j]:
                    pairs += 1
                    right += 0.5 + 0.5 * float(np.sign(x[i] - x[j]) * np.sign(rating[i] - rating[j]))
    return (right / pairs if pairs else float("nan")), pairs


def measured(rows: pl.DataFrame, scores: dict[str, Floats]) -> dict[str, Any]:
    """Return the figures of one source, over the rows that every score has."""
    able = np.all([np.isfinite(values) for values in scores.values()], axis=0)
    rating = rows["rating"].cast(pl.Float64).to_numpy()
    able &= np.isfinite(rating)
    rating, prompt = rating[able], rows.filter(pl.Series(able))["prompt_id"].to_list()
    its = {name: values[able] for name, values in scores.items()}
    paired = rows["source"][0] in OF_PAIRS
    good = rating > np.median(rating) if len(set(rating)) > 2 else rating == rating.max()
    out: dict[str, Any] = {"rows": rows.height, "scored": int(able.sum()), "ratings": len(set(rating)), "scores": {}}
    if able.sum() < 8:
        return out
    for name in ("judge", "judge, likeliest point", "likelihood", "length", "random"):
        share, pairs = agreement(its[name], rating, prompt)
        figures = {"agreement": share, "pairs": pairs, "with_length": spearman(its[name], its["length"])}
        if not paired:
            rank = spearman(its[name], rating)
            given = partial(rank, figures["with_length"], spearman(rating, its["length"]))
            figures |= {"spearman": rank, "spearman_given_length": given, "auroc": auroc(its[name], good)}
        out["scores"][name] = {key: rounded(value) for key, value in figures.items()}
    tops = its["judge, likeliest point"]
    out["judge"] = {
        "same_top": rounded(max(np.unique(tops, return_counts=True)[1]) / tops.size),
        "rating_sd": rounded(float(its["judge"].std())),
        "order_gap_mean": rounded(float(its["order_gap"].mean())),
        "order_gap_size": rounded(float(np.abs(its["order_gap"]).mean())),
        "mass_mean": rounded(float(its["mass"].mean())),
        "tokens_mean": rounded(float(its["tokens"].mean())),
    }
    return out


def verdicts(rows: pl.DataFrame, asker: Asker, most: int) -> dict[str, Any]:
    """Return how verdicts in both orders agree with the ratings, on pairs of a prompt that are rated apart."""
    pairs: list[tuple[str, str, str, bool]] = []
    for _, group in rows.group_by("prompt_id", maintain_order=True):
        one, *others = group.rows(named=True)
        two = next((row for row in others if row["rating"] != one["rating"]), None)
        if two is not None and len(one["messages"]) == 2:
            question, answer = (turn["content"] for turn in one["messages"])
            pairs.append((question, answer, two["messages"][-1]["content"], one["rating"] > two["rating"]))
    pairs = pairs[:most]
    if len(pairs) < 8:
        return {}
    found = compare(asker, *(list(column) for column in list(zip(*pairs, strict=True))[:3]))
    told = [(v, pair) for v, pair in zip(found, pairs, strict=True) if isinstance(v, Verdict)]
    agreed = [(v, pair) for v, pair in told if v.winner in ("a", "b")]
    return {
        "pairs": len(told),
        "agreed": rounded(len(agreed) / max(1, len(told))),
        "right_where_agreed": rounded(np.mean([(v.winner == "a") == p[3] for v, p in agreed]) if agreed else np.nan),
        "right_by_probability": rounded(np.mean([(v.a > v.b) == p[3] for v, p in told])),
        "position_mean": rounded(np.mean([v.position for v, _ in told])),
        "longer_wins": rounded(np.mean([(v.a > v.b) == (len(p[1]) > len(p[2])) for v, p in told])),
    }


def cost(rows: pl.DataFrame, model: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return rows per second of the judge and of the plain way: an option at a time, whole, alone.  Agreement first."""
    asker = Asker(model, **options)
    prompt = load_prompt("quality")
    parts = [(turns[-2]["content"], turns[-1]["content"]) for turns in rows["messages"].to_list() if len(turns) == 2]
    asked = [prompt.fill(reverse=r, question=q, answer=a) for q, a in parts for r in (False, True)]
    texts = [asker._texts.opened(conversation, direct=True) for conversation in asked]
    cut = asker._texts.cut([str(text) for text in texts], [tuple(prompt.options)] * len(texts))
    lm = asker.lm
    assert isinstance(lm, TransformersLM) and lm.context is not None
    keep = [i for i, (ids, _) in enumerate(cut) if ids.size + 1 < (lm.context or 2**31)]
    asked, cut = [asked[i] for i in keep], [cut[i] for i in keep]

    def plain() -> list[Floats]:
        out = []
        for ids, its in cut:
            values = []
            for option in its:
                row = np.concatenate([ids, option])
                (found,) = lm.token_logprobs([(row, np.arange(row.size) >= ids.size)])
                assert found is not None
                values.append(float(found.sum()))
            weights = np.exp(np.array(values) - max(values))
            out.append(weights / weights.sum())
        return out

    ways = {"judge": lambda: asker.options(asked, list(prompt.options)), "plain": plain}
    found = {name: way() for name, way in ways.items()}  # also warms up
    errors = [
        float(np.abs(one.probabilities - two).max())
        for one, two in zip(found["judge"], found["plain"], strict=True)
        if isinstance(one, Choice)
    ]
    assert len(errors) == len(asked) and max(errors) < (1e-4 if lm.dtype == "float32" else 5e-2), max(errors)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    best = {name: min(times) for name, times in seconds.items()}
    tokens = sum(ids.size for ids, _ in cut)
    asker.close()
    return {
        "rows": len(asked) // 2,
        "prompt_tokens_per_row": rounded(2 * tokens / len(asked)),
        "rows_per_second": {name: rounded(len(asked) / 2 / s) for name, s in best.items()},
        "faster": rounded(best["plain"] / best["judge"]),
        "largest_difference": max(errors),
    }


def rounded(value: Any) -> Any:
    """Return three digits; None for NaN, which JSON does not have."""
    value = float(value)
    if not np.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) > 1 else round(value, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rated", type=Path, required=True)
    parser.add_argument("--model", default=str(ROOT / "examples" / "model"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rows", type=int, default=80, help="of each source")
    parser.add_argument("--pairs", type=int, default=30, help="of each source, for verdicts in both orders")
    parser.add_argument("--timed", type=int, default=24, help="rows that are timed; 0: none")
    parser.add_argument("--quick", action="store_true", help="two sets, a dozen rows")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    args = parser.parse_args()
    if args.quick:
        args.rows, args.pairs, args.timed = 12, 8, 4

    options = {"device": args.device, "dtype": args.dtype}
    load = os.getloadavg()
    start = time.perf_counter()
    sources: dict[str, Any] = {}
    timed: dict[str, Any] | None = None
    folders = sorted(path for path in args.rated.iterdir() if any(path.glob("*.parquet")))
    for folder in folders[:2] if args.quick else folders:
        every = pl.read_parquet(folder / "*.parquet")
        for (source,), rows in every.group_by("source", maintain_order=True):
            rows = sample(rows.filter(pl.col("rating").is_not_null()), args.rows)
            found = measured(rows, scored(rows, {"model": args.model, **options}))
            asker = Asker(args.model, **options)
            found["verdicts"] = verdicts(rows, asker, args.pairs)
            asker.close()
            sources[str(source)] = found
            print(source, json.dumps(found), flush=True)
        if timed is None and args.timed:
            timed = cost(every.filter(pl.col("rating").is_not_null()).head(args.timed), args.model, options)
            print("cost", json.dumps(timed), flush=True)
    described = models.load(args.model, **options).describe()
    results = {
        "model": models.identify(args.model),
        "engine": described,
        "prompt": {word: load_prompt(word).identity() for word in ("quality", "complexity", "verdict")},
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": load[0]},
        "seconds": round(time.perf_counter() - start),
        "cost": timed,
        "sources": sources,
    }
    args.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
