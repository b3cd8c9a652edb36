"""The command line: thin.  It turns words into calls, and errors into a message and an exit code (2 usage, 1 run)."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from curate.pipelines.run import Run

app = typer.Typer(
    name="curate",
    help="Score, select and hand over instruction-tuning data, with a reason for every row.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeArg = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe (YAML).")]
RunOption = Annotated[
    str | None, typer.Option("--run", metavar="DIR", help="Run directory or URL [default: runs/NAME].")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrule a part of the recipe, e.g. select.0.budget=5%."),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        "--scheduler", metavar="ADDRESS", help="'local' (default), 'sync', or the address of a Dask scheduler."
    ),
]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Worker processes of the local cluster.")]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="Read only the first N rows: a rehearsal.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress lines.")]


def _version(asked: bool) -> None:
    if asked:
        from curate import __version__

        print(f"curate {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    if debug:
        os.environ["CURATE_DEBUG"] = "1"


def _make(
    recipe: str,
    run: str | None,
    sets: list[str] | None,
    scheduler: str | None,
    workers: int | None,
    limit: int | None,
    quiet: bool,
) -> Run:
    from curate.pipelines.run import Run
    from curate.recipe import Recipe

    overrides = _pairs(sets, "select.0.budget=5%")
    return Run(Recipe.load(recipe, overrides), run, scheduler, workers, limit, quiet)


def _pairs(sets: list[str] | None, example: str) -> dict[str, Any]:
    """Return what ``--set KEY=VALUE`` said, values read as a recipe would."""
    from curate.document import parse_value
    from curate.exceptions import RecipeError

    out: dict[str, Any] = {}
    for item in sets or []:
        key, eq, value = item.partition("=")
        if not eq or not key:
            raise RecipeError(f"--set {item!r}: KEY=VALUE was asked, e.g. --set {example}.")
        out[key] = parse_value(value)
    return out


@app.command()
def run(
    recipe: RecipeArg,
    run: RunOption = None,
    set: SetOption = None,
    scheduler: SchedulerOption = None,
    workers: WorkersOption = None,
    limit: LimitOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run the whole pipeline.  The same command continues a run that was stopped."""
    job = _make(recipe, run, set, scheduler, workers, limit, quiet)
    _summary(job, job.execute())


@app.command()
def score(
    recipe: RecipeArg,
    run: RunOption = None,
    set: SetOption = None,
    scheduler: SchedulerOption = None,
    workers: WorkersOption = None,
    limit: LimitOption = None,
    quiet: QuietOption = False,
) -> None:
    """Read and score only; select later, as often as you like."""
    job = _make(recipe, run, set, scheduler, workers, limit, quiet)
    manifest = job.execute(until="score")
    rows = manifest["rows"]
    print(f"{rows['pool']:,} examples scored by {', '.join(manifest['stages']) or 'nothing'} in {job.store.place()}")


@app.command()
def select(
    recipe: RecipeArg,
    run: RunOption = None,
    set: SetOption = None,
    scheduler: SchedulerOption = None,
    workers: WorkersOption = None,
    limit: LimitOption = None,
    quiet: QuietOption = False,
) -> None:
    """Select and write from scores that are there; stop rather than score."""
    from curate.exceptions import RunError
    from curate.pipelines.plan import plan as make_plan

    job = _make(recipe, run, set, scheduler, workers, limit, quiet)
    missing = [f"{s.name} ({s.rows - s.there:,} of {s.rows:,} rows)" for s in make_plan(job).stages if s.there < s.rows]
    if missing:
        raise RunError(
            f"not scored yet: {', '.join(missing)}. Run 'curate score' with the same recipe and options first, or "
            "'curate run' for all at once."
        )
    _summary(job, job.execute())


@app.command()
def plan(
    recipe: RecipeArg,
    run: RunOption = None,
    set: SetOption = None,
    scheduler: SchedulerOption = None,
    workers: WorkersOption = None,
    limit: LimitOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show what would run, what is there already, and about how long it takes.  Loads no model, writes nothing."""
    from dataclasses import asdict

    from curate.pipelines.plan import plan as make_plan
    from curate.pipelines.progress import count, duration

    job = _make(recipe, run, set, scheduler, workers, limit, True)
    made = make_plan(job)
    if as_json:
        print(json.dumps(asdict(made), indent=1))
        return
    for text in made.recognised:
        print(text)
    print(f"\nrun directory  {job.store.place()}")
    print(f"{made.files} files, {made.workers} workers, rows {'counted' if made.exact else 'estimated'}\n")
    print(f"{'stage':<20}{'uses':<18}{'rows':>12}{'there':>12}{'tokens':>10}{'time':>10}  from")
    for s in made.stages:
        tokens = "" if s.tokens is None else f"~{count(s.tokens)}"
        time = "-" if s.rows <= s.there else f"~{duration(s.seconds or 0)}"
        print(f"{s.name:<20}{s.use:<18}{s.rows:>12,}{s.there:>12,}{tokens:>10}{time:>10}  {s.basis}")
    for names in dict.fromkeys(tuple(sorted([s.name, *s.together_with])) for s in made.stages if s.together_with):
        print(f"one forward pass serves {', '.join(names)}")
    for text in made.steps:
        print(f"select  {text}")
    print(f"\nabout {duration(made.seconds)} in all")


@app.command()
def why(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    id: Annotated[str, typer.Argument(metavar="ID", help="An id, the beginning of one, or FILE:ROW.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Tell one row's whole story: origin, scores, decision, text."""
    from dataclasses import asdict

    from curate.pipelines.store import Store
    from curate.pipelines.why import tell as tell_story
    from curate.pipelines.why import why as find

    stories = find(Store(run if "://" in run else os.path.abspath(run)), id)
    if as_json:
        print(json.dumps([asdict(s) for s in stories], indent=1, ensure_ascii=False, default=_plain))
        return
    for story in stories:
        print(tell_story(story))


@app.command()
def review(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory, scored or finished.")],
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE", help="Where to write it [default: the recipe's file, or review.jsonl]."),
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, metavar="N", help="How many [default: 200].")] = None,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="SCORE", help="What says how doubtful a row is: a score, or a correction."),
    ] = None,
    order: Annotated[
        str | None, typer.Option("--order", metavar="ORDER", help="worst (default), or nearest to the threshold.")
    ] = None,
    correction: Annotated[
        str | None, typer.Option("--correction", metavar="NAME", help="Which review of the recipe, if it has several.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that holds verdicts.")] = False,
) -> None:
    """List the rows that a person should look at first, as a file to fill in."""
    from curate.pipelines.review import review as list_rows
    from curate.pipelines.store import Store

    store = Store(run if "://" in run else os.path.abspath(run))
    print(list_rows(store, out, rows=rows, on=on, order=order, correction=correction, overwrite=overwrite))


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Where to write it [default: RUN/report.html].")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=0, metavar="N", help="Rows shown with their texts [default: 300].")
    ] = None,
) -> None:
    """Write the report of a finished run: one HTML file, to be opened anywhere."""
    from curate.pipelines.report import write_report
    from curate.pipelines.store import Store
    from curate.pipelines.view import SAMPLES

    store = Store(run if "://" in run else os.path.abspath(run))
    written = write_report(store, out, samples=SAMPLES if samples is None else samples)
    print(f"report     {written.path}  ({written.bytes / 1e6:.1f} MB)")
    for problem in written.problems:
        print(f"curate: {problem}", file=sys.stderr)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="Two or more run directories.")],
    html: Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write a page, too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Compare what runs kept: overlap, what only one kept, composition, scores."""
    from curate.pipelines.compare import compare as compare_runs
    from curate.pipelines.compare import tell, write_page

    found = compare_runs(runs)
    print(json.dumps(found.as_dict(), indent=1, ensure_ascii=False) if as_json else tell(found))
    if html is not None:
        path = write_page(found, html)
        print(f"page       {path}", file=sys.stderr if as_json else sys.stdout)


@app.command()
def evaluate(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN…", help="Finished runs of one pool; RUN,RUN,RUN are draws of one method."),
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The proxy: a folder or a Hub name.")
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option("--budgets", metavar="N,N…", help="What to compare at: 500, 5%, 50k tokens [default: all kept]."),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Trainings of each [default: 3].")] = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Overrule a part of the section evaluate, e.g. held_out=20."),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Where it is kept [default: RUN/evaluation].")
    ] = None,
    scheduler: SchedulerOption = None,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """Find out whether a selection trains better than random: a proxy is trained on it, and on what it must beat."""
    from curate.document import override
    from curate.evaluation import tables
    from curate.evaluation.evaluate import Evaluation

    changes: dict[str, Any] = {}
    for key, value in _pairs(set, "held_out=20").items():
        override(changes, key, value)
    if model is not None:
        changes["model"] = model if os.path.isabs(model) or not os.path.isdir(model) else os.path.abspath(model)
    if budgets is not None:
        changes["budgets"] = [part.strip() for part in budgets.split(",")]
    if seeds is not None:
        changes["seeds"] = seeds
    methods = [draws if len(draws := run.split(",")) > 1 else run for run in runs]
    outcome = Evaluation(methods, out, changes, scheduler, workers, quiet).execute()
    _show(tables.markdown(outcome, brief=len(outcome.comparisons) > 2))
    print(f"\nevidence   {outcome.place}/evidence.md  (every table; report.html draws them)")


def _show(page: str) -> None:
    """Print a page of Markdown; on a terminal, as it is meant to look."""
    if not sys.stdout.isatty():
        print(page, end="")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(page))


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    format: Annotated[str, typer.Option("--format", "-f", metavar="NAME", help="See 'curate list exporters'.")],
    to: Annotated[
        str | None, typer.Option("--to", metavar="DIR", help="Folder or URL [default: RUN/exports/NAME].")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", metavar="KIND", help="parquet, jsonl, jsonl.gz or jsonl.zst.")
    ] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the format, e.g. turns=last.")
    ] = None,
    shard_rows: Annotated[int, typer.Option("--shard-rows", min=1, metavar="N", help="Rows per file.")] = 100_000,
    strict: Annotated[bool, typer.Option("--strict", help="Stop if the format cannot hold every row.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Write the kept rows in a trainer's format; rows that it cannot hold are counted, with reasons."""
    from curate.pipelines.handover import export_run, place_of
    from curate.pipelines.progress import Progress
    from curate.pipelines.store import Store
    from curate.recipe import exporter_of

    exporter = exporter_of(format, _pairs(set, "turns=last"))
    progress = Progress(sys.stderr, quiet=quiet)
    try:
        made = export_run(
            Store(place_of(run)),
            exporter,
            None if to is None else place_of(to),
            file=file,
            shard_rows=shard_rows,
            strict=strict,
            progress=progress,
        )
    finally:
        progress.close()
    print(made.text)
    print(f"written to {made.path}")
    if made.refused:
        print(f"refused rows are listed in {made.path}/refused.parquet")


@app.command()
def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The directory (or URL) of a finished run.")],
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="Dataset repository on the Hub.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Who may see it [default: private; as it is where it exists]."),
    ] = None,
    with_scores: Annotated[
        bool, typer.Option("--with-scores", help="Add a config with every row's decision, reason and scores.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="Branch, made if it is missing [default: main].")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", metavar="TEXT", help="The commit's message.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace data of other columns, or not made by curate.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and the card; send nothing.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Publish a finished run on the Hub, in one commit.  The same command continues a push that was interrupted."""
    from curate.pipelines.push import push as publish

    done = publish(
        run,
        repository,
        private=private,
        with_scores=with_scores,
        revision=revision,
        message=message,
        overwrite=overwrite,
        dry_run=dry_run,
        say=None if quiet else lambda line: print(line, file=sys.stderr),
    )
    print(f"{done}\n\n{done.card}" if dry_run else done)


@app.command(name="list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="scorers, selectors, correctors, connectors or exporters.")
    ] = None,
) -> None:
    """List the parts that a recipe can use, built-in and from plugins."""
    from curate import registry
    from curate.exceptions import InputError

    kinds = ("scorers", "selectors", "correctors", "connectors", "exporters")
    if kind is not None and kind not in kinds:
        raise InputError(
            f"no kind of parts is called {kind!r}{registry.nearest(kind, list(kinds))} Kinds: {', '.join(kinds)}."
        )
    for each in kinds if kind is None else (kind,):
        words = registry.names(each)  # type: ignore[arg-type]
        print(f"{each}: {', '.join(words) if words else '(none yet)'}" if kind is None else "\n".join(words))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this one, to be put into a file.")] = None,
) -> None:
    """List the ready-made recipes; with a name, print one: curate recipes grape > grape.yaml"""
    from curate.pipelines import ready

    if name is not None:
        print(ready.text(name), end="")
        return
    width = 2 + max(map(len, ready.names()))
    for each in ready.names():
        print(f"{each:<{width}}{ready.about(each)}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors: completion, and red lines under what is wrong."""
    from curate.schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=1, ensure_ascii=False))


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else str(value)


def _summary(job: Run, manifest: dict[str, Any]) -> None:
    rows, decisions = manifest["rows"], manifest["decisions"]
    held = rows["examples"] + rows["rejected"]
    print(f"{rows['input']:,} rows in" + (f", {held:,} responses" if held != rows["input"] else ""))
    width = max(len(f"{n:,}") for n in decisions.values())
    for word in ("kept", "dropped", "corrected", "duplicate", "rejected"):
        if decisions.get(word):
            note = ""
            if word == "rejected":
                note = "  " + ", ".join(f"{n:,} {r}" for r, n in list(manifest["rejected"].items())[:4])
            print(f"  {decisions[word]:>{width},} {word}{note}")
    print(
        f"dataset    {job.store.place('dataset')}  ({manifest['dataset']['rows']:,} rows, "
        f"{manifest['dataset']['files']} file(s))"
    )
    print(f"decisions  {job.store.place('decisions')}  (curate why {_short(job)} ID)")
    report = manifest.get("report") or {"problems": []}
    if "file" in report and job.store.exists(report["file"]):
        print(f"report     {job.store.path(report['file'])}")
    for problem in report["problems"]:
        print(f"report     {problem}", file=sys.stderr)


def _short(job: Run) -> str:
    if not job.store.local:
        return job.store.url
    relative = os.path.relpath(job.store.root)
    return relative if len(relative) < len(job.store.root) else job.store.root


_STOPPED = "\ncurate: stopped. Finished shards are kept; the same command continues."


def _foreign(error: BaseException) -> int:
    """Answer what is not ours: Ctrl-C, the option parser's errors, and bugs.

    The parser's classes are told by their interface: typer brings its own copy of click, or uses the installed one.
    """
    kind = type(error).__name__
    if isinstance(error, KeyboardInterrupt) or kind == "Abort":
        print(_STOPPED, file=sys.stderr)
        return 130
    if kind == "Exit" and hasattr(error, "exit_code"):
        return int(error.exit_code)
    if hasattr(error, "show") and hasattr(error, "exit_code"):
        error.show()
        return 2
    if os.environ.get("CURATE_DEBUG") or isinstance(error, SystemExit):
        raise error
    print(
        f"curate: unexpected {kind}: {error}\nThis is a bug; run again with 'curate --debug …' and report what it "
        "prints.",
        file=sys.stderr,
    )
    return 1


def main(argv: list[str] | None = None) -> None:
    """Entry point: every error of ours becomes a message and its exit code."""
    from curate.exceptions import CurateError

    try:
        code = app(sys.argv[1:] if argv is None else argv, standalone_mode=False) or 0
        if code == 130:  # newer parsers answer Ctrl-C themselves
            print(_STOPPED, file=sys.stderr)
    except CurateError as error:
        if os.environ.get("CURATE_DEBUG"):
            raise
        print(f"curate: {error}", file=sys.stderr)
        code = error.exit_code
    except BrokenPipeError:  # the reader of our output left: nothing to tell, and nobody to tell it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except BaseException as error:
        code = _foreign(error)
    sys.exit(code)


if __name__ == "__main__":
    main()
