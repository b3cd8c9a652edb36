"""Build ``examples/pool``: about 3,000 rows of instruction data that may be passed on and used commercially.

    python examples/make_pool.py --data 'DATA/pool/*.parquet'

``--data`` names Parquet files with the columns id, messages, source, task, category and license.  The choice depends on
``--seed`` and on the row ids alone: rows are ordered by a keyed hash of their id, so neither the number of input files
nor their order changes the result.

What is taken, and why each source may be, stands in ``examples/pool/LICENSES.md``.  Natural noise is kept: identity
rows with ``{{name}}`` placeholders, roleplay prompts that carry two different answers, roleplay rows that are there
twice, and GSM8K questions in two formats.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import polars as pl

# (source, task or None for all, rows).  Roleplay and GSM8K have their own functions below.
PLAIN_SHARES = [
    ("gpteacher", "toolformer", 450),
    ("text2sql", "sql_advising", 200),
    ("clinc150", None, 300),
    ("mbpp", None, 74),
    ("tata", None, 120),
    ("lf_demo", "glaive_toolcall_en", 60),
    ("lf_demo", "reason_tool_use", 10),
    ("lf_demo", "dpo_en_chosen", 30),
    ("lf_demo", "identity", 25),
    ("self_instruct_seed", None, 40),
    ("dolly", None, 400),
    ("sgd", None, 450),
]
TWO_ANSWERS = 90  # roleplay prompts, each with the answer of gpteacher and another of gpteacher_mirror
EXACT_TWICE = 40  # roleplay rows that are the same in both
SINGLE_ROLEPLAY = 120  # from each of the two sources, with no partner in the pool
GSM8K = 350
GSM8K_BOTH_FORMATS = 60  # of these questions also come in the other format
GSM8K_OTHER_FORMAT_ONLY = 50

LICENSES = {  # source -> the licence every row taken from it must state
    "gpteacher": "MIT",
    "gpteacher_mirror": "MIT",
    "gsm8k": "MIT",
    "gsm8k_alpaca_format": "MIT",
    "text2sql": "CC BY 4.0",
    "clinc150": "CC BY 3.0",
    "mbpp": "CC BY 4.0",
    "tata": "CC BY 4.0",
    "lf_demo": "Apache-2.0 (repository)",
    "self_instruct_seed": "Apache-2.0",
    "dolly": "CC BY-SA 3.0",
    "sgd": "CC BY-SA 4.0",
}


def normalise(text: str) -> str:
    """Lower-case letters and digits only."""
    return "".join(c for c in text.lower() if c.isalnum())


def keyed_order(rows: list[dict], seed: int, stream: str) -> list[dict]:
    """The rows in an order fixed by the seed, the stream's name and the ids."""

    def key(row: dict) -> bytes:
        return hashlib.blake2b(repr((seed, stream, row["id"])).encode(), digest_size=16).digest()

    return sorted(rows, key=key)


def prompt_of(row: dict) -> str:
    return normalise(row["messages"][0]["content"])


def choose_roleplay(rows: list[dict], seed: int) -> list[dict]:
    """Pairs with two answers, exact pairs, and rows without a partner."""
    ours = keyed_order([r for r in rows if r["source"] == "gpteacher" and r["task"] == "roleplay"], seed, "roleplay")
    mirror = keyed_order([r for r in rows if r["source"] == "gpteacher_mirror"], seed, "mirror")
    by_prompt: dict[str, list[dict]] = {}
    for row in mirror:
        by_prompt.setdefault(prompt_of(row), []).append(row)

    two_answers, twice, single = [], [], []
    used: set[str] = set()
    for row in ours:
        prompt, answer = prompt_of(row), row["messages"][-1]["content"]
        partners = by_prompt.get(prompt, [])
        if prompt in used or not partners:
            continue
        other = [p for p in partners if normalise(p["messages"][-1]["content"]) != normalise(answer)]
        same = [p for p in partners if p["messages"] == row["messages"]]
        if other and len(two_answers) < TWO_ANSWERS:
            two_answers.append((row, other[0]))
        elif same and len(twice) < EXACT_TWICE:
            twice.append((row, same[0]))
        elif len(single) < SINGLE_ROLEPLAY:
            single.append(row)
        else:
            continue
        used.add(prompt)
    for row in mirror:
        if len(single) == 2 * SINGLE_ROLEPLAY:
            break
        if prompt_of(row) not in used:
            used.add(prompt_of(row))
            single.append(row)
    return [row for pair in two_answers + twice for row in pair] + single


def choose_gsm8k(rows: list[dict], seed: int) -> list[dict]:
    """GSM8K rows, some of whose questions come back without calculator marks."""
    marked = keyed_order([r for r in rows if r["source"] == "gsm8k"], seed, "gsm8k")
    bare = keyed_order([r for r in rows if r["source"] == "gsm8k_alpaca_format"], seed, "gsm8k bare")
    by_prompt = {prompt_of(r): r for r in marked}
    matched = [r for r in bare if prompt_of(r) in by_prompt]
    both = matched[:GSM8K_BOTH_FORMATS]
    only = matched[GSM8K_BOTH_FORMATS : GSM8K_BOTH_FORMATS + GSM8K_OTHER_FORMAT_ONLY]
    chosen = [by_prompt[prompt_of(r)] for r in both]
    taken = {prompt_of(r) for r in both + only}
    chosen += [r for r in marked if prompt_of(r) not in taken][: GSM8K - len(chosen)]
    return chosen + both + only


def build_pool(data: str, seed: int) -> pl.DataFrame:
    """The pool as one table, in shuffled order."""
    frame = pl.read_parquet(data).filter(pl.col("source").is_in(list(LICENSES)))
    rows = frame.to_dicts()
    chosen = choose_roleplay(rows, seed) + choose_gsm8k(rows, seed)
    for source, task, count in PLAIN_SHARES:
        share = [r for r in rows if r["source"] == source and task in (None, r["task"])]
        chosen += keyed_order(share, seed, f"{source}/{task}")[:count]
    for row in chosen:
        if row["license"] != LICENSES[row["source"]]:
            raise ValueError(f"row {row['id']}: licence {row['license']!r}, expected {LICENSES[row['source']]!r}")
    columns = {"id": [], "messages": [], "source": [], "group": [], "license": []}
    for row in keyed_order(chosen, seed, "shuffle"):
        for name in columns:
            columns[name].append(row["category" if name == "group" else name])
    message = pl.Struct({"role": pl.String, "content": pl.String})
    return pl.DataFrame(columns, schema_overrides={"messages": pl.List(message)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="glob of Parquet files to choose from")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pool")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--seed", type=int, default=20240607)
    args = parser.parse_args()

    pool = build_pool(args.data, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    for shard in range(args.shards):
        lo, hi = (len(pool) * s // args.shards for s in (shard, shard + 1))
        path = args.out / f"train-{shard:05d}-of-{args.shards:05d}.parquet"
        pool[lo:hi].write_parquet(path, compression="zstd", compression_level=19)
        print(f"{path.name}: {hi - lo} rows, {path.stat().st_size:,} bytes")
    with pl.Config(tbl_rows=40):
        print(pool.group_by("source", "group", "license").len().sort("source", "group"))


if __name__ == "__main__":
    main()
