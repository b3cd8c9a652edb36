"""What a plugin that was written for another version looks like."""

from curate.base import SomethingThatIsGone  # noqa: F401
