"""What the tests of all sources share: a source read to its end, as ingest reads it."""

from pipeline.artifacts import Rejected
from pipeline.sources import Item, Piece, SourceBase


def pieces(source: SourceBase) -> list[Piece]:
    return [entry for entry in source.pieces() if isinstance(entry, Piece)]


def entries(source: SourceBase) -> list[Item | Rejected]:
    """Everything that ingest sees: what the listing rejects, then what the pieces hold, read both ways."""
    listed = list(source.pieces())
    assert listed == list(source.pieces())
    names = [entry.name for entry in listed]
    assert len(set(names)) == len(names)
    whole = [entry for entry in listed if isinstance(entry, Piece)]
    together = list(source.read(whole))
    apart = [item for piece in whole for item in source.read_piece(piece)]
    assert [item.name for _, item in together] == [item.name for item in apart]
    return [*(entry for entry in listed if isinstance(entry, Rejected)), *(item for _, item in together)]


def items(source: SourceBase) -> list[Item]:
    return [entry for entry in entries(source) if isinstance(entry, Item)]


def labels(source: SourceBase) -> dict[str, str | None]:
    return {item.name: item.label for item in items(source)}


def rejected(source: SourceBase) -> dict[str, str]:
    return {entry.name: entry.reason for entry in entries(source) if isinstance(entry, Rejected)}
