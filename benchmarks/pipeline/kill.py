"""``kill -9`` at twenty moments of a run's life, then the same command: the same result, and nothing computed twice.

    python benchmarks/pipeline/kill.py                  # writes kill.json; under 8 minutes on two idle cores
    python benchmarks/pipeline/kill.py --likelihood     # with the shipped language model as a third scorer
    python benchmarks/pipeline/kill.py --kills 4        # a look; saves nothing

Every kill takes the whole process group: the command, the scheduler in it, and the worker processes, in the same
instant.

Mode "apart": twenty runs, each killed once, the i-th at a random moment of the i-th twentieth of an undisturbed run's
time; then the same command again, to its end.  Mode "in a row": one run, started and killed twenty times (a few shards
after it went on, or in the steps that follow the last shard, or while it starts), then to its end.

Checked: scores, features, decisions, dataset and provenance are byte for byte those of an undisturbed run; no shard was
finished twice; and a shard was begun again only if it was under way when the kill came, of which there is at most one
per worker process.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from common import MODEL, POOL, digests, machine, run, save, start, write_recipe

from curate.seeding import rng_for

WORKERS = 2
OPTIONS = ("--workers", str(WORKERS))


def recipe(file: Path, likelihood: bool, rows: int) -> Path:
    scorers: dict[str, Any] = {"heuristics": {"use": "text-heuristics"}, "ngrams": {"use": "hashed-ngrams", "dim": 64}}
    quality = {"heuristics.repetition": 1.0}
    if likelihood:
        scorers["likelihood"] = {"use": "likelihood", "model": str(MODEL)}
        quality["likelihood"] = 1.0
    return write_recipe(
        file,
        {
            "name": "kill",
            "sources": [{"path": f"{POOL}/*.parquet"}],
            "scorers": scorers,
            "combine": {"quality": {"method": "rank", "of": quality}},
            "select": [
                {"use": "threshold", "on": "heuristics.repetition", "max": 0.9},
                {"use": "kmq", "features": "ngrams", "quality": "quality", "clusters": 32, "budget": "10%"},
            ],
            "output": {"shard_rows": 100},
            "execution": {"shard_rows": rows},
        },
    )


def kill(job: subprocess.Popen[str]) -> bool:
    """Kill the process group; return whether the command was still running."""
    alive = job.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            os.killpg(job.pid, 0)
        except (ProcessLookupError, PermissionError):
            return alive
        time.sleep(0.02)
    raise SystemExit(f"processes of group {job.pid} outlive a kill -9")


def events(directory: Path) -> list[dict[str, Any]]:
    """Return the journal; a kill may leave a last line cut short, which counts as not written."""
    out = []
    with contextlib.suppress(FileNotFoundError):
        for line in (directory / ".curate/events.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):
                out.append(json.loads(line))
    return out


def where(directory: Path) -> str:
    """Say how far a killed run had come, by what it left."""
    seen = events(directory)
    if not seen:
        return "start"
    aside = directory / ".curate/new"
    if (directory / ".curate/done/select.json").exists():
        return "finished"
    if aside.exists():
        if not (aside / "decisions").exists():
            return "publish"
        return "write" if (aside / "dataset").exists() else "decide"
    done = {e["stage"].rpartition("-")[0] or e["stage"] for e in seen if e["event"] == "done"}
    last = seen[-1]["stage"].rpartition("-")[0] or seen[-1]["stage"]
    return last if done else "read"


def judge(directory: Path, calm: dict[str, str], kills: int) -> dict[str, Any]:
    """Compare a run that was killed and taken up again with the undisturbed one."""
    found = digests(directory)
    differing = sorted(k for k in calm.keys() | found.keys() if calm.get(k) != found.get(k))
    starts: collections.Counter[tuple[str, str]] = collections.Counter()
    dones: collections.Counter[tuple[str, str]] = collections.Counter()
    for event in events(directory):
        (starts if event["event"] == "start" else dones)[event["stage"], event["part"]] += 1
    again = sum(n - 1 for n in starts.values())
    left = [str(p.relative_to(directory)) for p in directory.rglob("*.tmp")]
    verdict = {
        "files": len(found),
        "differing_files": differing,
        "shards": len(starts),
        "finished_twice": sorted(f"{s} {p}" for (s, p), n in dones.items() if n > 1),
        "begun_again": again,
        "begun_again_allowed": WORKERS * kills,
        "left_aside": left,
    }
    if differing or verdict["finished_twice"] or again > verdict["begun_again_allowed"] or left:
        raise SystemExit(f"a killed run did not heal: {json.dumps(verdict, indent=1)}")
    return verdict


def apart(file: Path, folder: Path, calm: dict[str, str], life: float, kills: int) -> list[dict[str, Any]]:
    """Kill one run after another, each once."""
    rng = rng_for(0, "apart")
    out = []
    for number in range(kills):
        directory = folder / f"apart-{number}"
        moment = life * (number + rng.random()) / kills
        while True:
            job = start(file, directory, *OPTIONS, log=folder / "log.txt")
            time.sleep(moment)
            if kill(job):
                break
            shutil.rmtree(directory)  # it was faster than the undisturbed one: nothing was killed
            moment *= 0.8
        at = where(directory)
        run(file, directory, *OPTIONS)
        verdict = judge(directory, calm, 1)
        out.append({"seconds": round(moment, 2), "during": at, **verdict})
        print(f"apart {number}: killed after {moment:.1f} s ({at}), {verdict['begun_again']} begun again", flush=True)
        shutil.rmtree(directory)
    return out


def in_a_row(file: Path, folder: Path, calm: dict[str, str], shards: int, kills: int) -> dict[str, Any]:
    """Kill one run again and again."""
    rng = rng_for(0, "in a row")
    directory = folder / "in-a-row"
    killed: list[str] = []
    finished = 0
    per_kill = max(1, 2 * shards // kills)
    while len(killed) < kills:
        before = len(events(directory))
        wanted = before + int(rng.integers(0, 2 * per_kill + 1))
        job = start(file, directory, *OPTIONS, log=folder / "log.txt")
        while job.poll() is None and len(events(directory)) < min(wanted, 2 * shards):
            time.sleep(0.005)
        pause = float(rng.random()) * (0.1 if wanted < 2 * shards else 2.0)
        time.sleep(pause)
        if kill(job):
            killed.append(where(directory))
            print(f"in a row {len(killed)}: killed during {killed[-1]}, {len(events(directory))} events", flush=True)
        else:
            finished += 1
            if finished > kills:
                break
    run(file, directory, *OPTIONS)
    verdict = judge(directory, calm, len(killed))
    return {"killed_during": killed, "kills": len(killed), "came_to_the_end_before_the_kill": finished, **verdict}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--shard-rows", type=int, default=64)
    parser.add_argument("--likelihood", action="store_true")
    parser.add_argument("--dir", help="where the runs are made; a temporary folder if not given")
    args = parser.parse_args()
    began = time.perf_counter()
    results: dict[str, Any] = {"machine": machine(), "likelihood": args.likelihood, "shard_rows": args.shard_rows}
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="curate-kill-") as temporary:
        folder = Path(temporary)
        file = recipe(folder / "recipe.yaml", args.likelihood, args.shard_rows)
        start_of_calm = time.perf_counter()
        manifest = run(file, folder / "calm", *OPTIONS)
        life = time.perf_counter() - start_of_calm
        calm = digests(folder / "calm")
        start_of_calm = time.perf_counter()
        run(file, folder / "again", *OPTIONS)
        life = min(life, time.perf_counter() - start_of_calm)
        assert digests(folder / "again") == calm, "two undisturbed runs differ: nothing can be said about killed ones"
        results |= {"undisturbed_seconds": round(life, 2), "rows": manifest["rows"], "decisions": manifest["decisions"]}
        shards = sum(e["event"] == "done" for e in events(folder / "calm"))
        print(f"undisturbed: {life:.1f} s, {shards} shards, {len(calm)} files", flush=True)
        results["in_a_row"] = in_a_row(file, folder, calm, shards, args.kills)
        results["apart"] = apart(file, folder, calm, life, args.kills)
    results["seconds"] = round(time.perf_counter() - began, 1)
    if args.kills >= 20:
        save("kill-likelihood.json" if args.likelihood else "kill.json", results)


if __name__ == "__main__":
    main()
