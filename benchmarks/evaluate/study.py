"""Does any of it beat random?  Every selector and scorer of the package, on one pool, by one proxy.

    python benchmarks/evaluate/study.py POOL TARGETS --work DIR          # two hours on two cores; goes on when stopped
    python benchmarks/evaluate/study.py POOL TARGETS --work DIR --quick  # a few rows, to see that it runs
    python benchmarks/evaluate/study.py --pages                          # what study.json holds, into the pages again

POOL is files as ``curate run`` takes them, TARGETS a folder of Parquet files, one a task, with the wanted answers.
Half of the tasks are shown to the selections that go by targets (``SHOWN`` rows of each, measured on others),
the others to nobody.  All is scored once, in ``DIR/scored``; every selection is a run, ``DIR/runs/NAME``, which
starts from a copy of these scores; ``curate evaluate`` compares them at equal training tokens, in ``DIR/evaluation``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curate import __version__, registry
from curate.evaluation.evaluate import Evaluation, Outcome
from curate.numerics.paired import holm
from curate.numerics.verdicts import task_words
from curate.pipelines.run import Run
from curate.recipe import Recipe
from curate.seeding import rng_for

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODEL = str(ROOT / "examples/model")
SHOWN, MEASURED = 20, 8
"""Rows of a task that selections may see, and others that proxies are measured on."""
CHARS = 3000
"""Longest conversation, of the pool and of targets."""
CONTROLS = 2

SCORERS: dict[str, dict[str, Any]] = {
    "length": {"model": MODEL},
    "likelihood": {"model": MODEL},
    "grape": {"model": MODEL},
    "ifd": {"model": MODEL},
    "donod": {"model": MODEL},
    "entropy": {"use": "response-entropy", "model": MODEL},
    "nuclear": {"use": "nuclear-norm", "model": MODEL},
    "states": {"use": "hidden-states", "model": MODEL},
    "heuristics": {"use": "text-heuristics"},
    "language": {},
    "digest": {"use": "text-digest"},
    "signatures": {"use": "minhash"},
    "ngrams": {"use": "hashed-ngrams"},
    "clusters": {"of": "ngrams", "clusters": 32},
    "sentences": {"use": "minilm"},
    "dsir": {},
    "bm25": {},
    "contamination": {},
    "rds": {"use": "attribution", "of": "states"},
    "nearest": {"use": "attribution", "of": "sentences"},
    "gradients": {
        "model": MODEL,
        "sample": "100%",
        "warm_up": {"epochs": 1, "batch": 16, "rate": 2.0e-4, "lora": {"r": 16, "alpha": 64}},
    },
    "influence": {"use": "attribution", "of": "gradients"},
    "samples": {"model": MODEL, "samples": 3, "new_tokens": 32},
    "consistency": {"of": "samples"},
    "reflection": {"use": "self-reflection", "model": MODEL},
    "judge": {"model": MODEL},
}
COMBINE: dict[str, dict[str, Any]] = {
    "donod-topsis": {"method": "topsis", "of": {"donod.don": 1, "donod.nod": 1}, "winsorise": 0.001},
    "evol": {"method": "product", "of": {"ifd.ifd": 1, "nuclear.per_root_token": 1}},
    "confidence": {"method": "mean", "of": {"consistency": 0.7, "reflection": 0.3}, "missing": "reweight"},
}
OTHER = {
    "column, label, `threshold` on them": "tell what the rows' own columns say; this pool has none to go by",
    "sentence": "vectors of another encoder; `minilm` stands for it",
    "samples, candidates, verdict, equivalence": "what corrections go by; no order of rows of their own",
    "learner, reward-gap": "asked between the rounds of `iterative-kmq`; a reward model is not shipped",
}
"""Scorers that have no line, and why."""


def top(score: str, **more: Any) -> list[dict[str, Any]]:
    return [{"use": "top-k", "on": score, **more}]


def then_random(*steps: dict[str, Any]) -> list[dict[str, Any]]:
    return [*steps, {"use": "random"}]


SELECTIONS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    # what a model says of a row
    "likelihood": ("likeliest answers first", top("likelihood")),
    "likelihood-low": ("least likely answers first", top("likelihood", largest=False)),
    "min-k": ("Min-K%: highest mean of the least likely tokens", top("likelihood.min_k_logprob")),
    "grape": ("GRAPE: likeliest answer to each prompt", [{"use": "best-per-prompt", "on": "grape"}]),
    "ifd": ("IFD, at most 1, highest first", [{"use": "threshold", "on": "ifd", "max": 1.0}]),
    "donod": ("DONOD: TOPSIS of both norms", top("donod-topsis")),
    "entropy": ("highest entropy of the answer", top("entropy", largest=True)),
    "nuclear-norm": ("UDS: highest utility", top("nuclear.per_root_token")),
    "middle": (
        "quantile: the likelier half, then random",
        then_random({"use": "quantile", "on": "likelihood", "share": 0.5}),
    ),
    "confidence": (
        "CLEAR: above the median confidence, then random",
        then_random({"use": "quantile", "on": "confidence", "share": 0.5, "ties": "drop"}),
    ),
    "consistency": ("highest agreement of samples", top("consistency")),
    "self-reflection": ("highest certainty", top("reflection")),
    "judge": ("highest rating", top("judge")),
    # what the text says
    "repetition": ("least repetitive first", top("heuristics.repetition")),
    "longest-tokens": ("longest answers in tokens", [{"use": "longest", "on": "length.response_tokens"}]),
    # targets
    "less": ("LESS", [{"use": "less", "features": "influence"}]),
    "bids": ("BIDS", [{"use": "bids", "features": "influence"}]),
    "rds": ("RDS+: round-robin by hidden states", [{"use": "round-robin", "features": "rds"}]),
    "nearest": ("round-robin by sentence vectors", [{"use": "round-robin", "features": "nearest"}]),
    "bm25": ("round-robin by BM25", [{"use": "round-robin", "features": "bm25"}]),
    "dsir-top": ("DSIR: highest weights", top("dsir")),
    "dsir": ("DSIR: resampled", [{"use": "sample", "on": "dsir"}]),
    # diversity
    "kmq": ("kMQ, n-grams", [{"use": "kmq", "features": "ngrams", "clusters": 32}]),
    "kmq-likelihood": (
        "kMQ, n-grams, by likelihood",
        [{"use": "kmq", "features": "ngrams", "clusters": 32, "quality": "likelihood"}],
    ),
    "kmq-sentences": ("kMQ, sentence vectors", [{"use": "kmq", "features": "sentences", "clusters": 32}]),
    "iterative-kmq": (
        "iterative kMQ: trains between rounds",
        [
            {"use": "threshold", "on": "length.total_tokens", "max": 512},
            {
                "use": "iterative-kmq",
                "features": "ngrams",
                "clusters": 32,
                "round_rows": 105,
                "rounds": 3,
                "evaluate": 0.5,
                "learner": {
                    "model": MODEL,
                    "max_tokens": 512,
                    "new_tokens": 48,
                    "judge": "perplexity",
                    "warm_up": {"epochs": 1, "batch": 16, "rate": 1.0e-3, "lora": {"r": 16, "alpha": 32}},
                },
            },
        ],
    ),
    "clusters": (
        "random, clusters in equal shares",
        [{"use": "random", "quota": {"by": "clusters.cluster", "shares": "uniform", "short": "take"}}],
    ),
    "languages": (
        "random, languages in tempered shares",
        [{"use": "random", "quota": {"by": "language.language", "shares": "tempered", "short": "take"}}],
    ),
    "k-center": ("k-center, sentence vectors", [{"use": "k-center", "features": "sentences"}]),
    "facility-location": (
        "facility location, sentence vectors",
        [{"use": "facility-location", "features": "sentences"}],
    ),
    "log-det": ("log-determinant, sentence vectors", [{"use": "log-det", "features": "sentences"}]),
    "mig": ("MIG, clusters as tags", [{"use": "mig", "features": "sentences", "groups": "clusters.cluster"}]),
    "deita": (
        "DEITA's filter; IFD times nuclear norm",
        [{"use": "repr-filter", "features": "ngrams", "quality": "evol", "threshold": 0.9}],
    ),
    # cleaning, then a draw
    "exact-dedup": (
        "without exact copies, then random",
        then_random({"use": "exact-duplicates", "features": "digest"}),
    ),
    "near-dedup": (
        "without near copies, then random",
        then_random({"use": "near-duplicates", "features": "signatures"}),
    ),
    "sem-dedup": ("SemDeDup, then random", then_random({"use": "sem-dedup", "features": "sentences"})),
    "decontaminated": (
        "without what holds a shown target, then random",
        then_random({"use": "threshold", "on": "contamination.overlap", "max": 0.0}),
    ),
    **{
        f"one-draw-{i + 1}": ("control: one random draw, kept for all seeds", [{"use": "random"}])
        for i in range(CONTROLS)
    },
    **{f"draws-{i + 1}": ("control: another random draw for each seed", [{"use": "random"}]) for i in range(CONTROLS)},
}
DRAWS = {"kmq", "iterative-kmq", "sample", "random", "exact-duplicates", "near-duplicates", "sem-dedup", "quantile"}
"""Selectors that draw, or end in a draw: one run for each seed, with a draw of its own."""


def draws_of(name: str, seeds: int) -> list[int]:
    """Return the seeds of the draws of a selection; one that draws nothing has one run."""
    _, steps = SELECTIONS[name]
    first = 100 * (1 + list(SELECTIONS).index(name))
    return [first + i for i in range(seeds if steps[-1]["use"] in DRAWS and not name.startswith("one-draw") else 1)]


def split_targets(folder: Path, out: Path) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Cut each task with an answer into rows that are shown and rows that are measured; return both as sources.

    Of every other task, in the order of their names, nothing is shown.
    """
    shown: dict[str, dict[str, Any]] = {}
    measured: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*.parquet")):
        rows = pl.read_parquet(file)
        chars = pl.col("messages").list.eval(pl.element().struct.field("content").str.len_chars()).list.sum()
        answered = rows.filter((pl.col("messages").list.last().struct.field("role") == "assistant") & (chars <= CHARS))
        if answered.height < SHOWN + MEASURED:
            continue
        task = file.stem
        order = rng_for(0, "study", task).permutation(answered.height)
        parts = {"shown": order[:SHOWN], "measured": order[SHOWN : SHOWN + 48]}
        for name, its in parts.items():
            (out / name).mkdir(parents=True, exist_ok=True)
            path = out / name / f"{task}.parquet"
            if not path.exists():
                answered[np.sort(its).tolist()].write_parquet(path)
        measured[task] = {"path": str(out / "measured" / f"{task}.parquet")}
        if len(measured) % 2:
            shown[task] = {"path": str(out / "shown" / f"{task}.parquet")}
    return shown, measured


class Study:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, Path(args.work).resolve()
        self.shown, self.measured = split_targets(Path(args.targets), self.work / "targets")

    def document(self, name: str, scorers: dict[str, Any], select: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "name": name,
            "sources": [{"path": self.args.pool, "max_chars": CHARS}],
            "targets": {"sets": self.shown, "rows": SHOWN},
            "benchmarks": {task: dict(source) for task, source in self.shown.items()},
            "scorers": scorers,
            "select": select,
            "report": False,
            "execution": {"shard_rows": 256},
            **more,
        }

    def score(self) -> Path:
        """Score the pool, by every scorer, once."""
        folder = self.work / "scored"
        recipe = Recipe.from_dict(self.document("scored", SCORERS, []), self.work)
        Run(recipe, folder, limit=self.args.rows).execute(until="score")
        return folder

    def select(self, name: str, draw: int, scored: Path) -> Path:
        """Make one draw of one selection of what is scored."""
        folder = self.work / "runs" / f"{name}-{draw}" / name
        if (folder / "dataset").exists():
            return folder
        if not folder.exists():
            aside = folder.parent / ".aside"
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(scored, aside, copy_function=os.link)
            shutil.rmtree(aside / ".curate")
            shutil.copytree(scored / ".curate", aside / ".curate")
            aside.rename(folder)
        steps = [self._seeded(step, draw) for step in SELECTIONS[name][1]]
        if steps[-1]["use"] == "iterative-kmq":
            steps[-1]["budget"] = steps[-1]["rounds"] * steps[-1]["round_rows"]
        else:
            steps[-1] |= {"budget": f"{max(self.args.tokens) * 11 // 10} tokens", "cost": "length.total_tokens"}
        recipe = Recipe.from_dict(self.document(name, SCORERS, steps, combine=COMBINE), self.work)
        Run(recipe, folder, limit=self.args.rows, quiet=True).execute()
        return folder

    @staticmethod
    def _seeded(step: dict[str, Any], draw: int) -> dict[str, Any]:
        fields = {f.name for f in dataclasses.fields(registry.find("selectors", step["use"]))}
        return {**step, "seed": draw} if "seed" in fields else dict(step)

    def evaluate(self, folders: list[list[str]]) -> Outcome:
        changes = {
            "model": MODEL,
            "training": {"tokens_per_step": 1024, "dtype": self.args.dtype},
            "targets": {"sets": self.measured},
            "rows_per_task": MEASURED,
            "budgets": [f"{tokens} tokens" for tokens in self.args.tokens],
            "seeds": self.args.seeds,
            "baselines": ["random", "balanced", "longest"],
            "generate": False,
        }
        return Evaluation(folders, str(self.work / "evaluation"), changes).execute()

    def validity(self, folder: str) -> dict[str, str]:
        """Return of each score whether training follows it; each tenth of the pool is a training."""
        changes = {
            "model": MODEL,
            "training": {"tokens_per_step": 1024, "dtype": self.args.dtype},
            "targets": {"sets": self.measured},
            "rows_per_task": MEASURED,
            "budgets": [f"{min(self.args.tokens)} tokens"],
            "seeds": 1,
            "baselines": ["random"],
            "generate": False,
            "validity": list(VALID),
        }
        outcome = Evaluation([folder], str(self.work / "validity"), changes).execute()
        return {name: found.said for name, found in outcome.validities.items()}


VALID = ("likelihood", "ifd", "donod-topsis", "nuclear.per_root_token", "heuristics.repetition", "confidence", "judge")
"""Scores whose tenths are trained on."""


def rows_of(outcome: Outcome) -> list[dict[str, Any]]:
    """Return a row for each selection and budget; p of all selections of a budget adjusted together (Holm)."""
    out = []
    for c in outcome.comparisons:
        found = c.evidence
        against = {name: found.baseline(name) for name in ("random", "balanced", "longest")}
        names = [name for name in found.selections if name not in ("zero-shot",)]
        places = [found.place(name) for name in names]
        adjusted = holm(np.array([found.loss.p[s, against["random"], -1] for s in places]))
        for name, s, p_all in zip(names, places, adjusted, strict=True):
            row: dict[str, Any] = {
                "selection": name,
                "tokens": c.at.tokens,
                "rows": c.shares[name][0],
                "loss": found.loss.mean[s, -1],
                "sd": found.loss.sd[s, -1],
                "p of all selections": p_all,
                "forgetting": found.forgetting[s],
            }
            for baseline, k in against.items():
                if name == baseline:
                    continue
                words = task_words(found.loss, s, k)
                row[baseline] = {
                    "gain": found.loss.gain[s, k, -1],
                    "half": found.loss.half[s, k, -1],
                    "p": found.loss.p[s, k, -1],
                    "won": found.loss.won[s, k],
                    "better": [t for t, w in zip(found.tasks, words, strict=True) if w == "better"],
                    "worse": [t for t, w in zip(found.tasks, words, strict=True) if w == "worse"],
                }
            out.append(row)
    return out


def table(result: dict[str, Any], names: list[str]) -> list[str]:
    """Return selections as lines of Markdown: their gain on random at each budget, best first."""
    gains: dict[str, dict[int, dict[str, Any]]] = {}
    for row in result["results"]:
        gains.setdefault(row["selection"], {})[row["tokens"]] = row
    heads = ["selection", "is", *(f"{tokens:,} tokens" for tokens in result["tokens"]), "against random"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * len(result["tokens"]) + "---|"]

    def mean(name: str) -> float:
        return float(np.mean([row["random"]["gain"] for row in gains[name].values()]))

    for name in sorted(names, key=mean, reverse=True):
        cells = []
        for tokens in result["tokens"]:
            row = gains[name][tokens]
            against = row["random"]
            mark = "" if not against["p"] <= 0.05 else " ▲" if against["gain"] > 0 else " ▼"
            cell = f"{against['gain']:+.3f} ± {against['half']:.3f}".replace("-", "−") + mark
            cells.append(f"**{cell}**" if row["p of all selections"] <= 0.05 else cell)
        about = {**result["selections"], **BASELINES}[name]
        lines.append(f"| `{name}` | {about} | {' | '.join(cells)} | {in_words(list(gains[name].values()))} |")
    return lines


def in_words(rows: list[dict[str, Any]]) -> str:
    """Return "better at 2 of 3 budgets" and the like."""
    better = sum(r["random"]["p"] <= 0.05 and r["random"]["gain"] > 0 for r in rows)
    worse = sum(r["random"]["p"] <= 0.05 and r["random"]["gain"] < 0 for r in rows)
    said = [f"{word} at {n} of {len(rows)} budgets" for word, n in (("better", better), ("worse", worse)) if n]
    return ", ".join(said) or "no difference"


BASELINES = {"balanced": "baseline: sources take turns", "longest": "baseline: longest conversations"}
_BLOCK = re.compile(r"(<!-- study: (.*?) -->\n).*?(<!-- /study -->)", re.S)


def write_pages(result: dict[str, Any]) -> None:
    """Put the results into the pages that ask for them: between <!-- study: NAME, NAME --> and <!-- /study -->."""
    there = {row["selection"] for row in result["results"]} - {"random"}
    for page in [*sorted((ROOT / "docs").glob("*.md")), HERE / "README.md"]:

        def filled(found: re.Match[str]) -> str:
            asked = sorted(there) if found[2] == "all" else [n for n in found[2].split(", ") if n in there]
            return found[1] + "\n" + "\n".join(table(result, asked)) + "\n\n" + found[3]

        text = page.read_text()
        if (new := _BLOCK.sub(filled, text)) != text:
            page.write_text(new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", nargs="?")
    parser.add_argument("targets", nargs="?")
    parser.add_argument("--work")
    parser.add_argument("--pages", action="store_true", help="only put what --out holds into the pages")
    parser.add_argument("--rows", type=int, default=2000, help="the first rows of the pool")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8_000, 16_000, 24_000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", nargs="+", help="these selections alone")
    parser.add_argument("--validity", action="store_true", help="train on tenths of the scores too")
    parser.add_argument("--score", action="store_true", help="score, select, and stop")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "study.json")
    args = parser.parse_args()
    if args.pages:
        write_pages(json.loads(args.out.read_text()))
        return
    if not (args.pool and args.targets and args.work):
        parser.error("POOL, TARGETS and --work were asked")
    if args.quick:
        args.rows, args.tokens, args.seeds = 200, [2_000, 4_000], 2
        args.only = args.only or ["likelihood", "less", "kmq", "near-dedup", "draws-1"]
    known = set(registry.names("selectors")) - {s["use"] for _, steps in SELECTIONS.values() for s in steps}
    if missing := known - {"random"}:
        raise SystemExit(f"selectors without a line: {', '.join(sorted(missing))}")
    study = Study(args)
    scored = study.score()
    names = [name for name in SELECTIONS if not args.only or name in args.only]
    folders = [[str(study.select(name, draw, scored)) for draw in draws_of(name, args.seeds)] for name in names]
    if args.score:
        return
    outcome = study.evaluate(folders)
    result = {
        "curate": __version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "rows": args.rows,
        "tokens": args.tokens,
        "seeds": args.seeds,
        "dtype": args.dtype,
        "tasks": outcome.held_out.account,
        "shown": sorted(study.shown),
        "selections": {name: SELECTIONS[name][0] for name in names},
        "without a line": OTHER,
        "zero-shot": [float(c.evidence.loss.mean[c.evidence.place("zero-shot"), -1]) for c in outcome.comparisons],
        "results": rows_of(outcome),
        "validity": study.validity(folders[0][0]) if args.validity else {},
        "scoring seconds": {
            name: account["seconds_of_work"] + (account.get("seconds_of_fit") or 0)
            for name, account in json.loads((Path(folders[0][0]) / "manifest.json").read_text())["stages"].items()
        },
        "trial seconds": sum(t.get("seconds_training", 0) + t.get("seconds_measuring", 0) for t in outcome.trials),
    }
    args.out.write_text(json.dumps(result, indent=1, default=float) + "\n")
    if args.out == HERE / "study.json":
        write_pages(result)


if __name__ == "__main__":
    main()
