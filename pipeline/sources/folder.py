"""A folder of image files, local, `s3://bucket/prefix` or an `https://` archive; the first subfolder is the class.

Hidden files are passed over. Whatever else is no image of the listed kinds is rejected by name, so that it is
counted. Symbolic links are followed only to files inside the folder. Listing and reading need memory for the names of
one folder; a bucket is listed as it goes.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import ClassVar, Literal

from pipeline.artifacts import Rejected
from pipeline.errors import SourceError
from pipeline.reading.locations import PathSource
from pipeline.reading.places import ChangedError, File, Location, address
from pipeline.sources import Item, Piece, changed

EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")
MAX_FILE_BYTES = 256 << 20
READ_AHEAD_FILES = 16  # hides the latency of an object store; local reads are serial
READ_AHEAD_BYTES = 64 << 20  # unless one file is larger
PEEKED_OBJECTS = 10_000  # of a bucket are kept in memory while nothing says whether there are class folders


class Source(PathSource):
    """A folder of png, jpg, jpeg, webp, bmp, gif, tif or tiff files."""

    what: ClassVar[str] = "images"

    kind: Literal["folder"] = "folder"

    def pieces(self) -> Iterator[Piece | Rejected]:
        entries, labelled = _listing(self.location())
        num_pieces, others, first = 0, 0, ""
        for entry in entries:
            found = _judged(entry, labelled) if isinstance(entry, File) else entry
            if isinstance(found, Piece):
                num_pieces += 1
            else:
                others, first = others + 1, first or f", first {found.name}"
            yield found
        if not num_pieces:
            kinds = ", ".join(EXTENSIONS)
            got = f"none among {others} other files{first}" if others or labelled else "an empty folder"
            raise SourceError(f"{self.path}: expected images ({kinds}), got {got}")

    def read_piece(self, piece: Piece) -> Iterator[Item | Rejected]:
        yield _read(self.location(), piece)

    def read(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Item | Rejected]]:
        location = self.location()
        if location.remote:
            yield from _read_ahead(location, pieces)
        else:
            for piece in pieces:
                yield piece, _read(location, piece)

    def classes(self) -> tuple[str, ...] | None:
        return self.location().folders()

    @property
    def checks_marks(self) -> bool:
        return self.location().checks_marks


def _listing(location: Location) -> tuple[Iterator[File | Rejected], bool]:
    """The files, and whether there are class folders.

    A bucket does not say so before one is met. Where none is among the first objects it is listed twice: that happens
    to large ones without classes.
    """
    folders = location.folders()
    if folders is not None:
        return location.files(), bool(folders)
    entries = location.files()
    peeked = list(islice(entries, PEEKED_OBJECTS))
    labelled = any("/" in entry.name for entry in peeked)
    if len(peeked) == PEEKED_OBJECTS and not labelled:
        labelled = any("/" in entry.name for entry in entries)
        entries = islice(location.files(), PEEKED_OBJECTS, None)
    return chain(peeked, entries), labelled


def _judged(file: File, labelled: bool) -> Piece | Rejected:
    """Reject by name and size what can be no sample."""
    if file.name.rpartition(".")[2].lower() not in EXTENSIONS:
        return Rejected(name=file.name, reason="not an image")
    if file.bytes > MAX_FILE_BYTES:
        return Rejected(name=file.name, reason=f"larger than {MAX_FILE_BYTES:,} bytes: {file.bytes:,}")
    if labelled and "/" not in file.name:
        return Rejected(name=file.name, reason="beside the class folders, in none of them")
    return Piece(file.name, file.mark, file.bytes, 1, file.at)


def _read(location: Location, piece: Piece) -> Item | Rejected:
    name = piece.name
    try:
        data = location.read(address(name, piece.at), piece.bytes, piece.mark)
    except ChangedError:
        raise changed(location.path, name) from None
    except OSError as error:
        return Rejected(name=name, reason=f"cannot be read: {error.strerror}")
    label, slash, _ = name.partition("/")
    return Item(name, data, label if slash else None)


def _read_ahead(location: Location, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Item | Rejected]]:
    """The images in order, with several reads under way: bounded by their number and bytes."""
    under_way: deque[tuple[Piece, Future[Item | Rejected]]] = deque()
    num_bytes = 0
    with ThreadPoolExecutor(READ_AHEAD_FILES) as pool:
        for piece in pieces:
            while under_way and (len(under_way) >= READ_AHEAD_FILES or num_bytes + piece.bytes > READ_AHEAD_BYTES):
                first, future = under_way.popleft()
                num_bytes -= first.bytes
                yield first, future.result()
            under_way.append((piece, pool.submit(_read, location, piece)))
            num_bytes += piece.bytes
        while under_way:
            first, future = under_way.popleft()
            yield first, future.result()
