"""Where a path leads: each kind of source from a folder, a bucket and the web, by the same reader."""

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.reading.locations import open_location
from pipeline.reading.places import ChangedError, File
from pipeline.sources import parse_source
from pipeline.store import open_store
from tests.pipeline.reading.web import Web, serving
from tests.pipeline.sources.reading import items, labels, pieces


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("ATELIER_HOME", str(tmp_path / "home"))
    with serving() as server:
        yield server


def served(web: Web, name: str, data: bytes) -> dict[str, str]:
    web.files[f"/{name}"] = data
    return {"path": f"{web.url}/{name}", "sha256": hashlib.sha256(data).hexdigest()}


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def test_an_archive_is_a_folder_and_a_part_of_it_too(web: Web) -> None:
    data = zipped({"flowers/train/rose/1.png": b"a", "flowers/test/rose/2.png": b"b", "__MACOSX/._x": b"m"})
    section = {"kind": "folder", **served(web, "flowers.zip", data)}
    source = parse_source(section)
    assert labels(source) == {"flowers/test/rose/2.png": "flowers", "flowers/train/rose/1.png": "flowers"}
    inside = parse_source({**section, "path": f"{section['path']}#flowers/train"})
    assert labels(inside) == {"rose/1.png": "rose"}
    assert inside.classes() == ("rose",)
    assert [piece.mark for piece in pieces(inside)] == [f"1-{section['sha256']}"]
    assert len(web.asked) == 1
    with pytest.raises(
        SourceError, match=r"flowers\.zip: expected a folder roses in the archive, found flowers; correct"
    ):
        items(parse_source({**section, "path": f"{section['path']}#roses"}))


def test_a_single_file_of_its_kind_comes_from_the_web_under_its_own_name(web: Web) -> None:
    out = io.BytesIO()
    np.savez(out, x_train=np.zeros((3, 4, 4), np.uint8), y_train=np.arange(3))
    source = parse_source({"kind": "npz", **served(web, "data/mnist.npz", out.getvalue())})
    assert labels(source) == {f"mnist.npz/x_train/{n:06d}": str(n) for n in range(3)}
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("1.png"))
    source = parse_source({"kind": "webdataset", **served(web, "train-000.tar", shard.getvalue())})
    assert labels(source) == {"train-000/1": None}


def test_what_is_on_the_web_under_another_digest_is_refused(web: Web) -> None:
    section = {"kind": "folder", **served(web, "a.zip", zipped({"a.png": b"a"})), "sha256": "0" * 64}
    with pytest.raises(SourceError, match=r"a\.zip: expected SHA-256 0000"):
        items(parse_source(section))


def test_a_bucket_lists_in_the_order_of_the_tree_and_reads_at_random(s3_uri: str) -> None:
    store = open_store(s3_uri)
    data = bytes(range(256)) * 40_000
    for key in ("b/x.bin", "a.b/y", "a/z", "a/.hidden/z"):
        store.put(f"in/{key}", data)
    place = open_location(f"{s3_uri}/in", None, "files")
    files = [entry for entry in place.files() if isinstance(entry, File)]
    assert [file.name for file in files] == ["a/z", "a.b/y", "b/x.bin"]
    assert place.read("b/x.bin", len(data), files[2].mark) == data
    with pytest.raises(ChangedError):
        place.read("b/x.bin", len(data) - 1, files[2].mark)
    with place.open("b/x.bin") as stream:
        for start in (0, 5_000_000, 100, len(data) - 3, len(data), len(data) + 5):
            stream.seek(start)
            assert stream.read(10) == data[start : start + 10]
        stream.seek(0)
        assert stream.read() == data
    with pytest.raises(SourceError, match="in/none: expected an object to read, found none"):
        place.open("none")


def test_a_path_that_leads_nowhere_is_one_clear_line(tmp_path: Path) -> None:
    message = r"expected a folder of \.npz files or one file \(\.npz\) at .*, found none \(seen from /"
    with pytest.raises(SourceError, match=message):
        items(parse_source({"kind": "npz", "path": str(tmp_path / "none.npz")}))
    with pytest.raises(SourceError, match=r"expected a folder of images at .*/x, found none"):
        open_location(str(tmp_path / "x"), None, "images")
