"""How the files of a data set are got: they are published, somebody brings them, or there are none. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from largebatch.data.formats import Form


@dataclass(frozen=True)
class NoFiles:
    """``why`` there are none: "it comes with scikit-learn"."""

    why: str
    folders: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class ByHand:
    """``why`` nobody can fetch it; ``folders``: what it is called below a data folder, none where a recipe must say."""

    why: str
    folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Package:
    """A system's package with the set, and the folder that it fills."""

    name: str
    folder: Path


@dataclass(frozen=True)
class PublishedFiles:
    """Files with their MD5 on mirrors, the forms in which a copy may lie here, and where it is looked for."""

    folders: tuple[str, ...]  # what it is called below a data folder
    forms: tuple[Form, ...]  # the first is that of the published files
    mirrors: tuple[str, ...]
    md5: dict[str, str]
    home: str  # the folder that they go to, below a data folder
    page: str  # for a reader
    package: Package | None = None
    pickled: tuple[str, ...] = ()  # folders and archives of a version that is not read: opening a pickle runs code

    @property
    def archived(self) -> Form | None:
        """The form whose files come in one archive, if they do."""
        return next((form for form in self.forms if form.folder == self.home), None)


Origin = NoFiles | ByHand | PublishedFiles
