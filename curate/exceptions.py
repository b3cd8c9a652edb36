"""Every error that curate raises on purpose.

    CurateError
    ├── UsageError        exit 2   what was asked cannot be meant: fix the command, the recipe or the arguments
    │   ├── RecipeError            a recipe that does not say something runnable; knows its file and line
    │   ├── InputError             arguments of a Python call (also a ValueError)
    │   ├── SchemaError            columns that are unknown, ambiguous or of the wrong type
    │   ├── SourceError            a path or URL that is not there or cannot be read at all
    │   └── MissingDependencyError an optional package (also an ImportError)
    └── RunError          exit 1   a run that began and cannot go on; finished work stays and is reused
        ├── RunDirectoryError      unwritable, foreign, or in use by another run
        ├── StageError             a stage that failed, with the shard it failed on
        ├── SchedulerError         a Dask scheduler that is not there, or that went away
        ├── ModelError             a model that cannot be found, loaded or run
        ├── HubError               a push that the Hub refused or did not answer; nothing of it is published
        └── AccountingError        input rows ≠ kept + dropped + corrected + duplicates + rejected

A failed *row* is data (null and a reason, or a rejected row); a failed *run* raises.  Messages say what was asked,
what was found, and what to do.
"""

from __future__ import annotations


class CurateError(Exception):
    """Root of the tree.  ``exit_code`` is what the command line returns."""

    exit_code = 1


class UsageError(CurateError):
    exit_code = 2


class RecipeError(UsageError, ValueError):
    """A recipe that cannot run.  ``where`` is ``file:line`` when it is known."""

    def __init__(self, message: str, *, where: str | None = None) -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


class InputError(UsageError, ValueError):
    pass


class SchemaError(UsageError, ValueError):
    pass


class SourceError(UsageError, OSError):
    def __init__(self, message: str) -> None:  # OSError would swallow a lone argument's formatting
        super().__init__(message)


class MissingDependencyError(UsageError, ImportError):
    pass


class RunError(CurateError, RuntimeError):
    pass


class RunDirectoryError(RunError):
    pass


class StageError(RunError):
    pass


class SchedulerError(RunError):
    pass


class ModelError(RunError):
    pass


class HubError(RunError):
    pass


class AccountingError(RunError):
    pass
