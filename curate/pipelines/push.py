"""A finished run → a dataset repository on the Hub, in one commit.

    files (dataset, card, recipe, manifest, scores on request)
        │  compared with what the repository holds
        ▼
    plan: send / same / delete        a dry run ends here; it has only read
        │
        ▼
    upload in batches of 50, by content: what an interrupted push sent is there already
        ▼
    one commit on top of the state that was planned on

Until the commit nothing is to be seen (a new repository is empty until then), and the commit is all or nothing, so a
push that fails publishes no half of a dataset.  The Hub is spoken to through ``huggingface_hub`` alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate import __version__
from curate._imports import require
from curate.connectors import hub
from curate.exceptions import HubError, InputError
from curate.pipelines.facts import dataset_schema, facts_of
from curate.pipelines.published import FORMAT, File, published
from curate.pipelines.store import Store

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from curate.pipelines.run import Run

BATCH = 50
"""Files uploaded together."""
MOST_FILES = 1_000
"""Changes in one commit: as many as the Hub's own uploader ever takes."""
_NOTHING_OF_NOTE = re.compile(r"\.git\w+|README\.md|LICEN[CS]E(\.\w+)?", re.IGNORECASE)
_DATA = re.compile(r".*\.(parquet|arrow|jsonl?|ndjson|csv|tsv)(\.(gz|zst|bz2|xz))?", re.IGNORECASE | re.DOTALL)
_BRANCH = re.compile(r"(?!refs/)(?![0-9a-f]{40}\Z)[A-Za-z0-9][\w./-]*\Z")


@dataclass(frozen=True)
class Remote:
    """What the repository holds before the push."""

    sha: str | None
    """Commit that the branch (or, for a new branch, main) stands at; None if there is no repository."""
    private: bool
    branch: bool
    """Whether the branch is there."""
    files: dict[str, str] = field(default_factory=dict)
    """Path → SHA-256 of a large file, git's SHA-1 of any other."""


@dataclass(frozen=True)
class Push:
    """What a push does (a dry run), or did.  ``str`` tells it in full."""

    repository: str
    url: str
    revision: str
    new_repository: bool
    new_branch: bool
    private: bool
    send: dict[str, int]
    """Path → bytes, of files that are new or different."""
    same: dict[str, int]
    """Path → bytes, of files that are there with the same content."""
    delete: tuple[str, ...]
    """Files of an earlier push (with ``overwrite``, data files of anybody) that this one has not."""
    message: str
    card: str = field(repr=False)
    commits: int
    """1, or 0 where nothing differs."""
    commit: str | None = None
    """The commit that was made; None in a dry run and where nothing differs."""
    dry_run: bool = False

    def __str__(self) -> str:
        state = [f"{'new, ' if self.new_repository else ''}{'private' if self.private else 'PUBLIC'}"]
        lines = ["dry run: nothing is sent"] if self.dry_run else []
        lines.append(f"repository  {self.url}  ({state[0]})")
        lines.append(f"branch      {self.revision}{' (new)' if self.new_branch else ''}")
        made = f": {self.commit}" if self.commit else ""
        lines.append(
            f'commits     {self.commits}{made}  "{self.message}"' if self.commits else "commits     0: it is all there"
        )
        for word, files in (("send", self.send), ("same", self.same)):
            if files:
                lines.append(f"{word:<12}{len(files):,} file(s), {_bytes(sum(files.values()))}")
                lines += [f"            {path}  {_bytes(size)}" for path, size in files.items()]
        if self.delete:
            lines.append(f"delete      {len(self.delete):,} file(s)")
            lines += [f"            {path}" for path in self.delete]
        return "\n".join(lines)


def push(
    run: Run | Store | str | Path,
    repository: str,
    *,
    private: bool | None = None,
    with_scores: bool = False,
    revision: str | None = None,
    message: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    endpoint: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Push:
    """Publish a finished run as ``USER/NAME`` on the Hub; the same call continues one that was interrupted.

    Parameters
    ----------
    run : a run, or its directory (any fsspec URL; a remote one is copied to a temporary folder first).
    private : None is private for a new repository, and as it is for one that exists.
    with_scores : adds the config "scores": every input row with its decision, reason and scores.
    revision : branch to push to, made from main if it is not there; None is main.
    overwrite : replace the data of a repository that has other columns, or was not made by curate.
    dry_run : say what would be done; only reads.
    endpoint : address of the Hub; ``HF_ENDPOINT``, or huggingface.co, when None.
    say : called with lines of progress.

    Raises
    ------
    RunDirectoryError
        If the run is not finished.
    InputError
        If the repository may not be replaced like that, or the visibility asked differs from the one it has.
    HubError
        If there is no token, it does not permit this, or the Hub cannot be reached.  Nothing is published then.
    """
    store = run if isinstance(run, Store) else getattr(run, "store", None) or _store(run)
    facts = facts_of(store)
    target = _target(repository, revision)
    client = hub.api(endpoint)
    what = f"push to {repository}"
    with tempfile.TemporaryDirectory(prefix="curate-push-") as folder:
        files = published(store, facts, repository, with_scores, Path(folder))
        with hub.asking(what, HubError):
            _check_token(client, files, say)
            remote = _look(client, repository, revision, say)
            earlier = _manifest(client, repository, remote)
            if remote.sha is not None:
                _check_visibility(repository, remote, private)
                if not overwrite:
                    _check_content(client, repository, remote, earlier, dataset_schema(store))
        send, same = _compare(files, remote)
        stale = _stale(remote, files, earlier, overwrite)
        if len(send) + len(stale) > MOST_FILES:
            raise InputError(
                f"{what}: {len(send) + len(stale):,} files would change in one commit, {MOST_FILES:,} at most were "
                "asked; run again with a larger output.shard_rows."
            )
        plan = Push(
            repository=repository,
            url=f"{hub.endpoint_of(client)}/datasets/{repository}",
            revision=target,
            new_repository=remote.sha is None,
            new_branch=not remote.branch,
            private=private is not False if remote.sha is None else remote.private,
            send={f.path: f.size for f in send},
            same={f.path: f.size for f in same},
            delete=stale,
            message=message or f"{facts.rows:,} rows of {facts.name} (curate {__version__})",
            card=next(bytes(f.content) for f in files if f.path == "README.md").decode(),  # type: ignore[arg-type]
            commits=int(bool(send or stale)),
            dry_run=dry_run,
        )
        if dry_run or not plan.commits:
            return plan
        then = "Nothing was published; what was uploaded is kept, and the same command continues."
        with hub.asking(what, HubError, then=then), _progress_bars(say is not None and sys.stderr.isatty()):
            return replace(plan, commit=_execute(client, plan, remote, send, files, say))


# -- what was asked ----------------------------------------------------------------------------------------------------


def _store(run: Any) -> Store:
    url = str(run)
    return Store(url if "://" in url else os.path.abspath(url))


def _target(repository: str, revision: str | None) -> str:
    """Check a repository's name and a branch's; return the branch."""
    errors = require("huggingface_hub.errors", extra="hub", for_="curate push")
    validate = require("huggingface_hub.utils", extra="hub", for_="curate push").validate_repo_id
    try:
        validate(repository)
    except errors.HFValidationError as error:
        raise InputError(f"push to {repository!r}: {str(error).rstrip('.')}.") from None
    if repository.count("/") != 1:
        raise InputError(f"push to {repository!r}: USER/NAME was asked.")
    if revision is not None and not _BRANCH.match(revision):
        raise InputError(f"push to {repository}: {revision!r} is no branch's name; a branch was asked (revision=).")
    return revision or "main"


# -- what is there -----------------------------------------------------------------------------------------------------


def _check_token(client: HfApi, files: list[File], say: Callable[[str], None] | None) -> None:
    """Stop early without a token, with one that may only read, and where a text to be published holds it."""
    secret = hub.token()
    if secret is None:
        raise HubError(f"push: {hub.NO_TOKEN}")
    for file in files:
        if not file.path.endswith(".parquet"):
            data = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
            if secret.encode() in data:
                raise InputError(f"push: {file.path} holds your token; take it out of there, and renew the token.")
    who = hub.patiently(client.whoami, say=say)
    access = (who.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        name = access.get("displayName") or "in use"
        raise HubError(f"push: the token {name!r} of {who.get('name')} may only read; log in with one that may write.")


def _look(client: HfApi, repository: str, revision: str | None, say: Callable[[str], None] | None) -> Remote:
    """Return what the repository holds on the branch, or on main where the branch is not there yet."""
    try:
        info = hub.patiently(client.dataset_info, repository, say=say)
    except Exception as error:
        if not hub.is_missing(error, "RepositoryNotFoundError"):
            raise
        return Remote(None, private=True, branch=revision in (None, "main"))
    branch, private = True, bool(info.private)
    if revision is not None:
        try:
            info = hub.patiently(client.dataset_info, repository, revision=revision, say=say)
        except Exception as error:
            if not hub.is_missing(error, "RevisionNotFoundError"):
                raise
            branch = False
    files = {}
    tree = hub.patiently(
        lambda: list(client.list_repo_tree(repository, recursive=True, revision=info.sha, repo_type="dataset")), say=say
    )
    for entry in tree:
        blob = getattr(entry, "blob_id", None)  # None of a folder
        large = getattr(entry, "lfs", None)
        if blob is not None:
            files[entry.path] = large.sha256 if large else blob
    return Remote(str(info.sha), private, branch, files)


def _check_visibility(repository: str, remote: Remote, private: bool | None) -> None:
    """Refuse to change who can see a repository."""
    if private is not None and private != remote.private:
        have, want = ("private", "public") if remote.private else ("public", "private")
        raise InputError(
            f"push to {repository}: --{want} was asked, the repository is {have}; change that in its settings first, "
            "or leave the option out."
        )


def _check_content(
    client: HfApi, repository: str, remote: Remote, earlier: dict[str, Any] | None, schema: pa.Schema
) -> None:
    """Refuse to replace what somebody else put there, or a dataset with other columns."""
    foreign = [p for p in remote.files if not _NOTHING_OF_NOTE.fullmatch(p)]
    if earlier is None and foreign:
        shown = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5:,} more" if len(foreign) > 5 else "")
        raise InputError(
            f"push to {repository}: it was not made by curate (it holds {shown}); push to another repository, or "
            "replace its data: --overwrite."
        )
    there = next((p for p in sorted(remote.files) if re.fullmatch(r"data/[^/]+\.parquet", p)), None)
    if earlier is None or there is None:
        return
    with _remote_file(client, repository, remote, there) as handle:
        found = pq.read_schema(handle).remove_metadata()
    if not found.equals(schema):
        raise InputError(
            f"push to {repository}: it holds a dataset with other columns: {_difference(found, schema)}. Push to "
            "another repository, or replace it: --overwrite."
        )


def _difference(there: pa.Schema, here: pa.Schema) -> str:
    parts = [f"{name!r} is only there" for name in there.names if name not in here.names]
    parts += [f"{name!r} is only here" for name in here.names if name not in there.names]
    for name in there.names:
        if name in here.names and there.field(name) != here.field(name):
            parts.append(f"{name!r} is {there.field(name).type} there, {here.field(name).type} here")
    return "; ".join(parts) or "their order differs"


@contextlib.contextmanager
def _remote_file(client: HfApi, repository: str, remote: Remote, path: str) -> Iterator[Any]:
    module = require("huggingface_hub", extra="hub", for_="curate push")
    fs = module.HfFileSystem(endpoint=hub.endpoint_of(client))
    with fs.open(f"datasets/{repository}@{remote.sha}/{path}", "rb") as handle:
        yield handle


def _manifest(client: HfApi, repository: str, remote: Remote) -> dict[str, Any] | None:
    """Return the manifest of an earlier push; None where there was none."""
    if "manifest.json" not in remote.files:
        return None
    with _remote_file(client, repository, remote, "manifest.json") as handle:
        try:
            said = json.loads(handle.read())
        except ValueError:
            return None
    known = isinstance(said, dict) and isinstance(said.get("push"), dict) and said["push"].get("format") == FORMAT
    return said if known else None


def _compare(files: list[File], remote: Remote) -> tuple[list[File], list[File]]:
    """Return (new or different, there with the same content)."""
    send: list[File] = []
    same: list[File] = []
    for file in files:
        there = remote.files.get(file.path)
        equal = there is not None and there == (file.sha256 if len(there) == 64 else file.git_sha1())
        (same if equal else send).append(file)
    return send, same


def _stale(remote: Remote, files: list[File], earlier: dict[str, Any] | None, overwrite: bool) -> tuple[str, ...]:
    """Return what an earlier push left that this one has not; with ``overwrite`` every other data file too."""
    new = {f.path for f in files}
    ours = set(earlier["push"]["files"]) if earlier else set()
    stale = (p for p in remote.files if p not in new and (p in ours or (overwrite and _DATA.fullmatch(p))))
    return tuple(sorted(stale))


# -- doing it ----------------------------------------------------------------------------------------------------------


def _execute(
    client: HfApi, plan: Push, remote: Remote, send: list[File], files: list[File], say: Callable[[str], None] | None
) -> str:
    """Create what is missing, upload, commit; return the commit."""
    tell = say or (lambda _: None)
    if plan.new_repository:
        hub.patiently(
            client.create_repo, plan.repository, repo_type="dataset", private=plan.private, exist_ok=True, say=say
        )
        remote = _look(client, plan.repository, None, say)
        if plan.private and not remote.private:
            raise HubError(
                f"push to {plan.repository}: private was asked, but the Hub made it public. Nothing was sent."
            )
        if any(not _NOTHING_OF_NOTE.fullmatch(path) for path in remote.files):
            raise HubError(
                f"push to {plan.repository}: somebody else created it meanwhile; look at it, and run the same command "
                "again. Nothing was sent."
            )
    module = require("huggingface_hub", extra="hub", for_="curate push")
    additions = [
        module.CommitOperationAdd(f.path, f.content if isinstance(f.content, bytes) else str(f.content)) for f in send
    ]
    sent = 0
    for start in range(0, len(additions), BATCH):
        batch = additions[start : start + BATCH]
        client.preupload_lfs_files(  # repeats by itself
            plan.repository,
            additions=batch,
            repo_type="dataset",
            revision=None if plan.new_branch else plan.revision,
            free_memory=False,
        )
        sent += sum(f.size for f in send[start : start + BATCH])
        tell(f"uploaded {min(start + BATCH, len(send)):,} of {len(send):,} files, {_bytes(sent)}")
    if plan.new_branch:
        hub.patiently(
            client.create_branch,
            plan.repository,
            branch=plan.revision,
            revision=remote.sha,
            repo_type="dataset",
            exist_ok=True,
            say=say,
        )
    deletions = [module.CommitOperationDelete(path) for path in plan.delete]

    def commit() -> str:
        head = _look(client, plan.repository, plan.revision, say)
        if head.sha != remote.sha and not _compare(files, head)[0] and not set(plan.delete) & set(head.files):
            return str(head.sha)  # an earlier try was made, only its answer was lost
        info = client.create_commit(
            plan.repository,
            [*deletions, *additions],
            commit_message=plan.message,
            repo_type="dataset",
            revision=plan.revision,
            parent_commit=remote.sha,
        )
        return str(info.oid)

    return hub.patiently(commit, say=say)


@contextlib.contextmanager
def _progress_bars(wanted: bool) -> Iterator[None]:
    """Let the Hub's own progress bars be seen, or not."""
    utils = require("huggingface_hub.utils", extra="hub", for_="curate push")
    hidden = utils.are_progress_bars_disabled()
    if not wanted and not hidden:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if not wanted and not hidden:
            utils.enable_progress_bars()


def _bytes(size: int) -> str:
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
