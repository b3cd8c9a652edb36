"""Build ``examples/targets``: three small sets that show what a model should learn, for the recipes on influence.

    python examples/make_targets.py --data DATA/targets

``--data`` is a folder of Parquet files with the columns id, messages, source and license.  Rows are ordered by a keyed
hash of their id and the first ones taken, as in ``make_pool.py``.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import polars as pl

SETS = {  # task -> (file, rows, the licence that every row must state)
    "maths": ("math_gsm8k_test.parquet", 60, "MIT"),
    "code": ("code_mbpp_test.parquet", 60, "CC BY 4.0"),
    "classification": ("classification_clinc_test.parquet", 60, "CC BY 3.0"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "targets")
    parser.add_argument("--seed", default="20261121")
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    for task, (file, rows, licence) in SETS.items():
        table = pl.read_parquet(args.data / file).select("id", "messages", "source", "license")
        keys = [hashlib.blake2b(i.encode(), key=args.seed.encode()).hexdigest() for i in table["id"]]
        taken = table.with_columns(key=pl.Series(keys)).sort("key").head(rows).drop("key")
        found = set(taken["license"])
        if not all(one.startswith(licence) for one in found):
            raise SystemExit(f"{file}: rows under {licence} were asked, {sorted(found)} were found.")
        taken.write_parquet(args.out / f"{task}.parquet", compression="zstd")
        print(f"{task}: {taken.height} rows")


if __name__ == "__main__":
    main()
