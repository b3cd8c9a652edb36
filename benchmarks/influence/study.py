"""Does it choose what it should?  Which rows of a mixed pool each way takes for the targets of seven tasks.

    python benchmarks/influence/study.py --data FOLDER             # a quarter of an hour, one thread
    python benchmarks/influence/study.py --data FOLDER --quick     # a fifth of the rows: does it run?

The folder holds pool/*.parquet and targets/*.parquet with the columns messages and source, and the pool's rows a
category, which goes by the data set that a row is from.  A way chooses well for a task if the rows that it ranks first
are of the task's category more often than the pool's are.  Saved after each seed; a second call does the seeds that are
missing, and prints the tables of the README.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import bm25s
import numpy as np
import pyarrow as pa
import torch
import transformers
from numpy.typing import NDArray

import curate
from curate import models
from curate.base import Scorer, Selector
from curate.connectors.pool import read
from curate.models.lora import Lora
from curate.models.warmup import WarmUp
from curate.numerics.attribution import attribute
from curate.scorers._texts import texts
from curate.scorers.attribution import prompt_digest
from curate.scorers.gradients import Gradients
from curate.scorers.hashed_ngrams import HashedNgrams
from curate.scorers.hidden_states import HiddenStates
from curate.scorers.minilm import MiniLM
from curate.seeding import rng_for
from curate.selectors import BIDS, LESS, RoundRobin
from curate.selectors.less import Aggregate

ROOT = Path(__file__).resolve().parents[2]
TASKS = {  # task -> (the files of its targets, each giving as many as the other; the category of the pool)
    "maths": (["math_gsm8k_test"], "math"),
    "code": (["code_mbpp_test", "code_humaneval"], "code"),
    "classification": (["classification_clinc_test"], "classification"),
    "multilingual": (["multilingual_tata_test", "multilingual_mgsm"], "multilingual"),
    "tool_use": (["tool_use_toolalpaca"], "tool_use"),
    "chat": (["chat_mt_bench"], "chat"),
    "reasoning": (["reasoning_bbh"], "reasoning"),
}
OTHER_KIND = "chat"
"""Its targets with an answer are questions of reasoning, maths and code: not in the means, nor a worst task."""
CONTROL = "gradients, plain, random weights"
"""A model that was not trained on rows like these, as the shipped one was."""
TARGETS = 20
SHARE = "5%"
HOW: dict[Aggregate, str] = {"mean-max": "mean over targets", "max": "best target"}
"""How a task's targets make one number: their mean, as LESS has it, or the highest, as RDS+ has it."""
LORA = Lora(r=16, alpha=64)
WARM_UP = WarmUp(epochs=1, batch=16, rate=2e-4, lora=LORA)


def scorers(model: str, untrained: str, seed: int) -> dict[str, Scorer]:
    """Return the ways that are cosines of vectors; all of them see prompt and answer."""
    plain: dict[str, Any] = {"warm_up": None, "lora": LORA, "optimizer": "sgd", "seed": seed}
    return {
        "hashed n-grams": HashedNgrams(text="both"),
        "sentence vectors": MiniLM(text="both"),
        "RDS+": HiddenStates(model=model),
        "gradients, plain": Gradients(model=model, **plain),
        "gradients, LESS": Gradients(model=model, warm_up=WARM_UP, sample="20%", seed=seed),
        CONTROL: Gradients(model=untrained, **plain),
    }


@contextmanager
def of_random_weights(model: str) -> Iterator[str]:
    """Yield the folder of a model of the same shape and tokenizer that has learned nothing."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(model)
    with tempfile.TemporaryDirectory() as folder:
        transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(model) / name, folder)
        yield folder


# -- rows --------------------------------------------------------------------------------------------------------------


def able(examples: pa.Table, encoder: models.Encoder, tokens: int) -> NDArray[np.bool_]:
    """Return which examples the model can read whole within ``tokens``, with an answer to learn."""
    rows = encoder.encode(examples["messages"].to_pylist(), examples["tools"].to_pylist())
    return np.array([r.reason is None and r.ids.size <= tokens and bool(r.mask.any()) for r in rows])


def draw_targets(data: Path, encoder: models.Encoder, tokens: int, seed: int) -> tuple[pa.Table, list[str], set[bytes]]:
    """Return the targets, the task of each, and what any row of their files asks, drawn or not."""
    tables, tasks, asked = [], [], set()
    for task, (files, _) in TASKS.items():
        for file in files:
            examples = read(str(data / "targets" / f"{file}.parquet")).examples()
            asked |= {prompt_digest(messages) for messages in examples["messages"].to_pylist()}
            there = np.flatnonzero(able(examples, encoder, tokens))
            wanted = TARGETS // len(files)
            if there.size < wanted:
                raise SystemExit(
                    f"{file}: {wanted} targets of at most {tokens} tokens were asked, it has {there.size}."
                )
            drawn = rng_for(seed, "study", "targets", file).permutation(there)[:wanted]
            tables.append(examples.take(pa.array(drawn)))
            tasks += [task] * wanted
    return pa.concat_tables(tables).combine_chunks(), tasks, asked


def draw_pool(
    everything: pa.Table, asked: set[bytes], encoder: models.Encoder, *, rows: int, tokens: int, seed: int
) -> tuple[pa.Table, int]:
    """Return so many rows of the pool, by content, and how many were passed over that ask what a target asks."""
    order = rng_for(seed, "study", "pool").permutation(everything.num_rows)
    parts: list[pa.Table] = []
    found = leaks = 0
    for start in range(0, order.size, 256):
        block = everything.take(pa.array(order[start : start + 256]))
        leaking = np.array([prompt_digest(messages) in asked for messages in block["messages"].to_pylist()])
        good = np.flatnonzero(able(block, encoder, tokens) & ~leaking)[: rows - found]
        parts.append(block.take(pa.array(good)))
        found += good.size
        leaks += int(leaking.sum())
        if found == rows:
            return pa.concat_tables(parts).sort_by("content_key").combine_chunks(), leaks
    raise SystemExit(f"{rows} rows of at most {tokens} tokens were asked, the pool has {found}.")


# -- ways --------------------------------------------------------------------------------------------------------------


def vectors(scorer: Scorer, examples: pa.Table) -> NDArray[Any]:
    """Return the vectors (n, d), NaN where there is none."""
    try:
        column = scorer.score(examples.select(list(scorer.reads))).column(0).combine_chunks()
    finally:
        scorer.close()
    matrix = np.array(column.values).reshape(len(column), -1)
    matrix[~np.asarray(column.is_valid())] = np.nan
    return matrix


def cosines(scorer: Scorer, pool: pa.Table, targets: pa.Table) -> NDArray[np.float32]:
    """Return the influence (n, M) of the pool's rows on the targets."""
    sides = [(scorer, pool), (scorer.for_targets(), targets)]
    if scorer.fit_rows:
        state = scorer.fit(pool.take(pa.array(scorer.fit_sample(pool.num_rows))).select(list(scorer.reads)))
        for side, _ in sides:
            side.load(state)
    return attribute(*(vectors(side, examples) for side, examples in sides))


def bm25(pool: pa.Table, targets: pa.Table) -> NDArray[np.float32]:
    """Return the BM25 scores (n, M) of the pool's rows, the targets being the queries."""

    def words(examples: pa.Table) -> Any:
        # Stop words and words of one letter stay: what is asked is the kind of a text, in any language.
        return bm25s.tokenize(
            texts(examples, "both"), token_pattern=r"(?u)\w+", stopwords=None, return_ids=False, show_progress=False
        )

    index = bm25s.BM25()
    index.index(words(pool), show_progress=False)
    return np.stack([index.get_scores(query) for query in words(targets)], axis=1)


# -- one seed ----------------------------------------------------------------------------------------------------------


def one(
    seed: int, everything: pa.Table, settings: Mapping[str, Any], data: Path, model: str, untrained: str
) -> dict[str, Any]:
    """Return the shares of categories that each way and each selector takes."""
    encoder = models.encoder(model)
    tokens, rows = settings["tokens at most"], settings["rows of the pool"]
    targets, tasks, asked = draw_targets(data, encoder, tokens, seed)
    pool, leaks = draw_pool(everything, asked, encoder, rows=rows, tokens=tokens, seed=seed)
    group = np.array(pool["group"].to_pylist())
    right = {task: group == category for task, (_, category) in TASKS.items()}
    if lacking := [task for task, mask in right.items() if not mask.any()]:
        raise SystemExit(f"seed {seed}: none of {rows} rows is of the category of {', '.join(lacking)}; ask for more.")
    calls: dict[str, Callable[[], NDArray[np.float32]]] = {"BM25": partial(bm25, pool, targets)}
    for name, scorer in scorers(model, untrained, seed).items():
        calls[name] = partial(cosines, scorer, pool, targets)
    a, seconds = {}, {}
    for name, call in calls.items():
        start = time.perf_counter()
        a[name] = call()
        seconds[name] = round(time.perf_counter() - start, 1)
        print(f"seed {seed}: {name}, {seconds[name]} s", flush=True)

    def taken(selector: Selector, matrix: NDArray[Any], of: str) -> float:
        return share(right[of][selector.select(matrix, SHARE).indices])

    columns = {task: [j for j, its in enumerate(tasks) if its == task] for task in TASKS}
    top = {
        how: {
            name: {task: taken(LESS(aggregate=how), matrix[:, columns[task]], task) for task in TASKS}
            for name, matrix in a.items()
        }
        for how in HOW
    }
    selectors = {"less": LESS(targets=tasks), "bids": BIDS(), "round-robin": RoundRobin(targets=tasks)}
    together = {
        f"{word} on {name}": {task: taken(selector, a[name], task) for task in TASKS}
        for name in ("RDS+", "gradients, LESS", CONTROL)
        for word, selector in selectors.items()
    }
    return {
        "rows of the pool that ask what a target asks, passed over": leaks,
        "rows of the category": {task: int(mask.sum()) for task, mask in right.items()},
        "share of the category": {task: share(mask) for task, mask in right.items()},
        "rows without a vector": {name: int(np.isnan(matrix[:, 0]).sum()) for name, matrix in a.items()},
        "mean cosine of targets and rows of the category": {
            name: {task: round(float(np.nanmean(matrix[right[task]][:, columns[task]])), 4) for task in TASKS}
            for name, matrix in a.items()
            if name != "BM25"
        },
        "seconds": seconds,
        "share among the top": top,
        "share among the chosen, all tasks at once": together,
    }


def share(mask: NDArray[np.bool_]) -> float:
    return round(float(mask.mean()), 4)


# -- all seeds ---------------------------------------------------------------------------------------------------------


def tables(results: Mapping[str, Any]) -> str:
    """Return the README's tables, as Markdown: means over the seeds, least and greatest in brackets."""
    seeds = list(results["seeds"].values())
    judged = [task for task in TASKS if task != OTHER_KIND]
    base = [s["share of the category"] for s in seeds]
    lines: list[str] = []

    def head(what: str, last: str) -> None:
        lines.extend(["", f"| {what} | " + " | ".join([*TASKS, last]) + " |", "|---|" + "---:|" * (len(TASKS) + 1)])

    def line(name: str, by_seed: list[dict[str, float]], last: Callable[[list[float]], float], form: str) -> None:
        """Add the numbers of each task, and one that ``last`` makes of those of the judged tasks."""
        cells = [[s[task] for s in by_seed] for task in TASKS]
        cells.append([last([s[task] for task in judged]) for s in by_seed])
        told = [f"{format(fmean(x), form)} ({format(min(x), form)}–{format(max(x), form)})" for x in cells]
        lines.append(f"| {name} | " + " | ".join(told) + " |")

    def percent(shares: Mapping[str, float]) -> dict[str, float]:
        return {task: 100 * x for task, x in shares.items()}

    for how, told in HOW.items():
        head(f"% right, {told}", "mean of six")
        line("random (base rate)", [percent(b) for b in base], fmean, ".0f")
        for name in seeds[0]["share among the top"][how]:
            line(name, [percent(s["share among the top"][how][name]) for s in seeds], fmean, ".0f")
    head("times the base rate", "worst of six")
    every = "share among the chosen, all tasks at once"
    for name in seeds[0][every]:
        lifts = [{task: s[every][name][task] / b[task] for task in TASKS} for s, b in zip(seeds, base, strict=True)]
        line(name, lifts, min, ".1f")
    return "\n".join(lines[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=str(ROOT / "examples" / "model"))
    parser.add_argument("--rows", type=int, default=800, help="of the pool, drawn anew for each seed")
    parser.add_argument("--tokens", type=int, default=1024, help="of a row or target, at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="150 rows, one seed, and nothing is saved")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    with of_random_weights(args.model) as untrained:
        study(args, untrained)


def study(args: argparse.Namespace, untrained: str) -> None:
    """Do the seeds that are missing, save, and print the tables."""
    settings = {
        "model": models.identify(args.model),
        "rows of the pool": 150 if args.quick else args.rows,
        "tokens at most": args.tokens,
        "targets of each task": TARGETS,
        "chosen": SHARE,
        "tasks": {task: {"targets": files, "category": category} for task, (files, category) in TASKS.items()},
        "ways": {name: way.identity()["params"] for name, way in scorers(args.model, untrained, 0).items()},
    }
    results: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        "versions": {module.__name__: module.__version__ for module in (curate, np, torch, transformers, bm25s)},
        "settings": json.loads(json.dumps(settings)),
        "seeds": {},
    }
    if args.out.exists() and not args.quick:
        before = json.loads(args.out.read_text(encoding="utf-8"))
        if before["settings"] != results["settings"]:
            raise SystemExit(f"{args.out} is of other settings; remove it, or name another with --out.")
        results["seeds"] = before["seeds"]
    missing = [seed for seed in range(1 if args.quick else args.seeds) if str(seed) not in results["seeds"]]
    everything = read(str(args.data / "pool" / "*.parquet"), group="category").examples() if missing else None
    for seed in missing:
        results["seeds"][str(seed)] = one(seed, everything, settings, args.data, args.model, untrained)
        if not args.quick:
            args.out.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(tables(results))


if __name__ == "__main__":
    main()
