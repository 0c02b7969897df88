"""What a report and the gallery show, as plain values: the templates read these and nothing else."""

from dataclasses import dataclass

from pipeline.artifacts import Dataset, Release, Run
from pipeline.pages.charts import Curve, Row
from pipeline.pages.drawn import Drawn
from pipeline.pages.shown import Picture
from pipeline.release.records import Retraction


@dataclass(frozen=True)
class Panel:
    """Images of one origin, a row for each class (one row of all where there are none)."""

    title: str
    href: str  # the release's page; empty for real images and in a report that stands alone
    rows: tuple[tuple[Picture, ...], ...]


@dataclass(frozen=True)
class Standing:
    """What a release is held against: the rival's figures, or why there are none."""

    rival: str = ""  # such as digits-gan@3
    role: str = ""  # what the rival is: champion, or the champion before
    note: str = ""  # a sentence
    aliases: tuple[str, ...] = ()  # that name this release now
    verdict: str = ""  # of the gate


@dataclass(frozen=True)
class Link:
    """A file to download."""

    name: str
    href: str
    bytes: int
    sha256: str
    about: str


@dataclass(frozen=True)
class Step:
    """One line of the lineage: what it is, its ref, and the digest of its record where the manifest names one."""

    kind: str
    ref: str
    sha256: str
    about: str


@dataclass(frozen=True)
class Report:
    """The page of one release."""

    release: Release
    run: Run
    dataset: Dataset
    description: str
    lead: str  # the release in a sentence
    classes: tuple[str, ...]
    sample_count: int
    samples: tuple[Picture, ...]
    panels: tuple[Panel, ...]
    film: tuple[Picture, ...]
    drawn: Drawn
    rows: tuple[Row, ...]
    standing: Standing
    curves: tuple[Curve, ...]
    copies: Picture | None
    lineage: tuple[Step, ...]
    links: tuple[Link, ...]
    extractor_note: str
    retraction: Retraction | None
    files_at: str  # the way from the page to the release's folder: empty, or ends with a slash

    @property
    def title(self) -> str:
        """As a person says it."""
        return f"{self.release.name} {self.release.number}"


@dataclass(frozen=True)
class Sampler:
    """The live sampler: where its runtime lies (empty: there is none), and if not why and how to add it."""

    runtime: str = ""
    why_not: str = ""


@dataclass(frozen=True)
class Card:
    """One release in the gallery."""

    name: str
    number: int
    href: str
    aliases: tuple[str, ...]
    pictures: tuple[Picture, ...]
    lead: str
    headline: tuple[tuple[str, str], ...]  # figures: name and value
    retracted: bool


@dataclass(frozen=True)
class Listed:
    """One file of a folder: its path from the page, and its size."""

    href: str
    bytes: int


@dataclass(frozen=True)
class Folder:
    """What the page of a record's folder shows."""

    uri: str
    title: str
    lead: str
    rows: tuple[tuple[str, str], ...]
    pictures: tuple[str, ...]
    files: tuple[Listed, ...]
    more: bool  # files than are listed
    events: bool  # whether they are TensorBoard's
