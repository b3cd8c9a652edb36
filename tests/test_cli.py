"""The command as a person meets it: exit codes, messages, no tracebacks, and a run that goes on where it stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from tests.conftest import ROOT, rows_of
from tests.pipelines.helpers import SCORERS, STEPS, digests

Recipes = Callable[..., Path]


def curate(*args: str, cwd: Path | None = None, prefix: str = "", **popen: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"{prefix}\nfrom curate.cli import main\nmain()", *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=300, **popen)


def fails(code: int, text: str, *args: str, **options: Any) -> None:
    done = curate(*args, **options)
    assert done.returncode == code, done.stderr + done.stdout
    assert text in done.stderr, done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.fixture
def recipe_file(tmp_path: Path, pool_of: Callable[..., Path]) -> Recipes:
    def make(n: int = 200, **changes: Any) -> Path:
        document = {
            "sources": [{"path": str(pool_of(rows_of(n), 3))}],
            "scorers": SCORERS,
            "select": STEPS,
            "execution": {"shard_rows": 16},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**document, **changes}, sort_keys=False))
        return path

    return make


def test_run_plan_select_why(recipe_file: Recipes, tmp_path: Path) -> None:
    recipe = str(recipe_file())
    before = curate("plan", recipe, cwd=tmp_path)
    assert before.returncode == 0 and "rows estimated" in before.stdout and not (tmp_path / "runs").exists()
    fails(1, "not scored yet: read (200 of 200 rows), heuristics", "select", recipe, cwd=tmp_path)
    done = curate("run", recipe, "--scheduler", "sync", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "200 rows in\n   40 kept\n  160 dropped\n" in done.stdout
    assert "heuristics: 200/200 rows" in done.stderr
    after = json.loads(curate("plan", recipe, "--json", cwd=tmp_path).stdout)
    assert (
        after["exact"]
        and all(s["rows"] == s["there"] for s in after["stages"])
        and sum(s["seconds"] for s in after["stages"]) == 0
    )
    smaller = curate(
        "select",
        recipe,
        "--set",
        "select.1.budget=7",
        cwd=tmp_path,
    )
    assert "7 kept" in smaller.stdout, smaller.stderr
    ledger = pl.read_parquet(tmp_path / "runs/recipe/decisions/*.parquet")
    dropped = ledger.filter(pl.col("decision") == "dropped").row(0, named=True)
    told = curate("why", "runs/recipe", dropped["id"][:12], cwd=tmp_path).stdout
    assert (
        told.startswith(f"DROPPED  {dropped['id']}")
        and "decided   by 2-kmq: " in told
        and "[user] Question" in told
        and "rating" in told
    )
    by_row = curate("why", "runs/recipe", f"{Path(dropped['file']).name}:{dropped['row']}", "--json", cwd=tmp_path)
    assert json.loads(by_row.stdout)[0]["decision"]["id"] == dropped["id"]
    fails(2, "no row answers to 'zzzz'", "why", "runs/recipe", "zzzz", cwd=tmp_path)
    fails(1, "is no run of curate", "why", ".", "zzzz", cwd=tmp_path)


def test_score_then_select(recipe_file: Recipes, tmp_path: Path) -> None:
    recipe = str(recipe_file(60))
    assert (
        "60 examples scored by heuristics, rating, ngrams"
        in curate("score", recipe, "--scheduler", "sync", cwd=tmp_path).stdout
    )
    assert not (tmp_path / "runs/recipe/dataset").exists()
    assert "12 kept" in curate("select", recipe, "--scheduler", "sync", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"sources": [{"path": "nowhere/*.parquet"}]}, 2, "nowhere"),
        ({"scorers": {"l": {"use": "likelihood", "model": "./nowhere"}}, "select": []}, 1, "nowhere"),
        ({"select": [{"use": "random", "budget": 10**6}]}, 1, "k=1000000 rows asked of a pool of n=200"),
        ({"select": [{"use": "random", "budgt": 5}]}, 2, "unknown key 'select.0.budgt'; did you mean 'budget'?"),
        ({"select": [{"use": "top-k", "on": "rating", "budget": "1M tokens", "cost": "heuristics.response_words"}]}, 1, "1,000,000 tokens asked of a pool"),
    ],
    ids=["path", "model", "budget", "key", "tokens"],
)  # fmt: skip
def test_clear_ends(changes: dict[str, Any], code: int, text: str, recipe_file: Recipes, tmp_path: Path) -> None:
    fails(code, text, "run", str(recipe_file(**changes)), "--scheduler", "sync", cwd=tmp_path)


def test_clear_ends_of_places(recipe_file: Recipes, tmp_path: Path) -> None:
    recipe = str(recipe_file())
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/one.tex").write_text("")
    fails(1, "not empty and is no run of curate", "run", recipe, "--run", "thesis", cwd=tmp_path)
    fails(1, "not empty and is no run of curate", "plan", recipe, "--run", "thesis", cwd=tmp_path)
    fails(1, "/proc/nope", "run", recipe, "--run", "/proc/nope", cwd=tmp_path)
    fails(
        1,
        "no Dask scheduler answers at tcp://127.0.0.1:9",
        "run",
        recipe,
        "--scheduler",
        "tcp://127.0.0.1:9",
        cwd=tmp_path,
    )
    fails(2, "no recipe at nope.yaml", "run", "nope.yaml", cwd=tmp_path)
    fails(2, "KEY=VALUE was asked", "run", recipe, "--set", "select", cwd=tmp_path)
    fails(2, "No such option", "run", recipe, "--sheduler", "sync", cwd=tmp_path)
    fails(2, "did you mean 'scorers'?", "list", "scorer")


def test_a_truncated_shard(recipe_file: Recipes, tmp_path: Path) -> None:
    recipe = str(recipe_file())
    shard = sorted((tmp_path / "pool").iterdir())[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    fails(2, shard.name, "run", recipe, "--scheduler", "sync", cwd=tmp_path)


def test_a_full_disk_and_then_room(recipe_file: Recipes, tmp_path: Path) -> None:
    """The operating system refuses files above 6 kB: score and example files of this pool are larger."""
    recipe = str(recipe_file(n=400, execution={"shard_rows": 200}))
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))"
    fails(1, "Make room, then run the same command", "run", recipe, "--scheduler", "sync", cwd=tmp_path, prefix=limit)
    assert not list((tmp_path / "runs").rglob("*.tmp"))
    done = curate("run", recipe, "--scheduler", "sync", cwd=tmp_path)
    assert done.returncode == 0 and "80 kept" in done.stdout, done.stderr


def start(recipe: str, run: Path, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "curate.cli", "run", recipe, "--run", str(run), *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def shards_done(run: Path) -> int:
    events = run / ".curate/events.jsonl"
    return events.read_text().count('"done"') if events.exists() else 0


def test_ctrl_c_and_the_same_command_again(recipe_file: Recipes, tmp_path: Path) -> None:
    recipe = str(recipe_file(600))
    assert curate("run", recipe, "--run", "calm", "--scheduler", "sync", cwd=tmp_path).returncode == 0
    run = tmp_path / "run"
    job = start(recipe, run)
    wait_for(lambda: shards_done(run) > 20)
    os.killpg(job.pid, signal.SIGINT)  # a terminal sends it to the workers too
    _, told = job.communicate(timeout=60)
    assert (
        job.returncode == 130
        and "stopped. Finished shards are kept; the same command continues." in told
        and "Traceback" not in told
    )
    assert not (run / "dataset").exists()
    again = start(recipe, run)
    _, told = again.communicate(timeout=120)
    assert again.returncode == 0 and "were there" in told
    for what in ("scores", "features", "decisions", "dataset"):
        assert digests(tmp_path / "calm", what) == digests(run, what)


def test_two_runs_at_once(recipe_file: Recipes, tmp_path: Path) -> None:
    recipe = str(recipe_file(600))
    run = tmp_path / "run"
    first = start(recipe, run, "--scheduler", "sync")
    wait_for(lambda: shards_done(run) > 2)
    fails(1, f"in use by another run (process {first.pid} on ", "run", recipe, "--run", str(run), cwd=tmp_path)
    first.communicate(timeout=120)
    assert first.returncode == 0


@pytest.mark.parametrize("after", [3, 30, 75])
def test_kill_9_and_the_same_command_again(after: int, recipe_file: Recipes, tmp_path: Path) -> None:
    """A few moments here; twenty random ones are a benchmark."""
    recipe = str(recipe_file(600))
    assert curate("run", recipe, "--run", "calm", "--scheduler", "sync", cwd=tmp_path).returncode == 0
    run = tmp_path / "run"
    job = start(recipe, run, "--workers", "2")
    wait_for(lambda: shards_done(run) >= after or job.poll() is not None)
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate()
    again = start(recipe, run, "--workers", "2")
    _, told = again.communicate(timeout=120)
    assert again.returncode == 0, told
    for what in ("scores", "features", "decisions", "dataset", "provenance"):
        assert digests(tmp_path / "calm", what) == digests(run, what)
    done: dict[tuple[str, str], int] = {}
    for line in (run / ".curate/events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "done":
            done[event["stage"], event["part"]] = done.get((event["stage"], event["part"]), 0) + 1
    assert max(done.values()) == 1  # a finished shard is never computed again


def test_plan_loads_no_model(recipe_file: Recipes, tmp_path: Path) -> None:
    """With weights that cannot be loaded the plan stands, and the run says what is wrong with them."""
    shutil.copytree(ROOT / "examples/model", tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    scorers = {"likelihood": {"use": "likelihood", "model": str(tmp_path / "model")}}
    recipe = str(recipe_file(50, scorers=scorers, select=[{"use": "top-k", "on": "likelihood", "budget": 5}]))
    planned = curate("plan", recipe, cwd=tmp_path)
    assert planned.returncode == 0 and "likelihood" in planned.stdout, planned.stderr
    fails(1, "cannot be loaded", "run", recipe, "--scheduler", "sync", cwd=tmp_path)


def test_likelihood_through_the_command(recipe_file: Recipes, tmp_path: Path) -> None:
    scorers = {"likelihood": {"use": "likelihood", "model": str(ROOT / "examples/model")}}
    steps = [{"use": "top-k", "on": "likelihood", "budget": "300 tokens"}]
    recipe = str(recipe_file(60, scorers=scorers, select=steps))
    kept = []
    for i, more in enumerate(
        (["--scheduler", "sync"], ["--workers", "2", "--set", "scorers.likelihood.batch_tokens=1"])
    ):
        done = curate("run", recipe, "--run", f"run{i}", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        ledger = pl.read_parquet(tmp_path / f"run{i}/decisions/*.parquet").filter(pl.col("decision") == "kept")
        kept.append(ledger.sort("order")["id"].to_list())
        assert pl.read_parquet(tmp_path / f"run{i}/provenance/*.parquet")["likelihood.tokens"].sum() <= 300
    assert kept[0] == kept[1] and kept[0]


def test_the_debug_option_shows_the_traceback() -> None:
    done = curate("--debug", "run", "nope.yaml")
    assert done.returncode == 1 and "Traceback" in done.stderr and "RecipeError" in done.stderr


def test_version_and_list() -> None:
    assert curate("--version").stdout.startswith("curate 0.")
    listed = curate("list").stdout
    assert "scorers: attribution, bm25, candidates, clusters, column, consistency, contamination," in listed
    assert "correctors: auto-correct, label-verification, majority-vote, review, rewrite, s3ft\n" in listed
