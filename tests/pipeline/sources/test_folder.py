"""A folder of images: what is taken, what is rejected by name, and that the fingerprint is of content."""

import os
import shutil
from pathlib import Path

import pytest

from pipeline.artifacts import Rejected
from pipeline.errors import SourceError, UserError
from pipeline.sources import Item
from pipeline.sources.folder import Source
from pipeline.store import Store


def write(root: Path, **files: str) -> Path:
    """Files by name ("__" is "/", "_" before the end is "."): their content matters to nobody here."""
    for name, content in files.items():
        file = root / name.replace("__", "/").replace("_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


def taken(source: Source) -> dict[str, int | None]:
    return {item.name: item.label for item in source.items() if isinstance(item, Item)}


def refused(source: Source) -> dict[str, str]:
    return {item.name: item.reason for item in source.items() if isinstance(item, Rejected)}


def test_the_first_subfolder_is_the_class(tmp_path: Path) -> None:
    write(tmp_path, dog__b_png="b", cat__deep__a_JPG="a", cat__c_tiff="c", bird__d_webp="d")
    source = Source(path=str(tmp_path))
    assert source.classes() == ("bird", "cat", "dog")
    assert taken(source) == {"bird/d.webp": 0, "cat/c.tiff": 1, "cat/deep/a.JPG": 1, "dog/b.png": 2}
    assert list(taken(source)) == sorted(taken(source))
    assert source.num_items() == 4


def test_without_subfolders_there_are_no_labels(tmp_path: Path) -> None:
    source = Source(path=str(write(tmp_path, a_png="a", b_gif="b")))
    assert source.classes() == ()
    assert taken(source) == {"a.png": None, "b.gif": None}


def test_a_relative_path_is_relative_to_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "images", a_png="a")
    monkeypatch.chdir(tmp_path)
    assert taken(Source(path="images")) == {"a.png": None}


def test_what_is_no_image_is_rejected_by_name_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, cat__a_png="a", cat__notes_txt="n", beside_png="b")
    for hidden in (".hidden", "cat/.DS_Store", ".git/a.png"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_text("h")
    source = Source(path=str(tmp_path))
    assert source.classes() == ("cat",)
    assert taken(source) == {"cat/a.png": 0}
    assert refused(source) == {
        "beside.png": "beside the class folders, in none of them",
        "cat/notes.txt": "not an image",
    }


def test_links_are_followed_only_to_files_inside(tmp_path: Path) -> None:
    root = write(tmp_path / "root", cat__a_png="a")
    write(tmp_path / "outside", private_png="s")
    (root / "cat" / "inside.png").symlink_to(root / "cat" / "a.png")
    (root / "cat" / "out.png").symlink_to(tmp_path / "outside" / "private.png")
    (root / "cat" / "gone.png").symlink_to(root / "cat" / "nothing.png")
    (root / "cat" / "loop").symlink_to(root)
    (root / "dog").symlink_to(tmp_path / "outside")
    os.mkfifo(root / "cat" / "pipe.png")
    source = Source(path=str(root))
    assert taken(source) == {"cat/a.png": 0, "cat/inside.png": 0}
    assert refused(source) == {
        "cat/gone.png": "cannot be read: No such file or directory",
        "cat/loop": "a link to a folder",
        "cat/out.png": "a link out of the folder",
        "cat/pipe.png": "not a regular file",
        "dog": "a link to a folder",
    }


def test_a_name_of_any_bytes_becomes_text(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.png"))).write_text("a")
    assert list(taken(Source(path=str(tmp_path)))) == ["\\xff\\n.png"]
    assert Source(path=str(tmp_path)).fingerprint()


def test_the_fingerprint_is_of_names_and_content_not_of_place_or_time(tmp_path: Path) -> None:
    one = write(tmp_path / "one", cat__a_png="a", dog__b_png="b")
    other = Path(shutil.copytree(one, tmp_path / "other"))
    os.utime(other / "cat" / "a.png", (1, 1))
    before = Source(path=str(one)).fingerprint()
    assert Source(path=str(other)).fingerprint() == before
    write(other, cat__a_png="A")
    assert Source(path=str(other)).fingerprint() != before
    write(one, dog__c_png="a")
    assert Source(path=str(one)).fingerprint() != before


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"expected images \(png, .*tiff\), got an empty folder"),
        ({"_hidden": "h"}, "got an empty folder"),
        (
            {"a_txt": "a", "b_md": "b"},
            r"expected images \(png, .*\), got none among 2 other files, first a.txt",
        ),
    ],
)
def test_a_folder_without_images_is_one_clear_line(tmp_path: Path, files: dict[str, str], message: str) -> None:
    source = Source(path=str(write(tmp_path, **files)))
    for ask in (source.fingerprint, source.classes, lambda: list(source.items())):
        with pytest.raises(SourceError, match=message):
            ask()


def test_a_missing_folder_is_one_clear_line(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", write(tmp_path, a_png="a") / "a.png"):
        with pytest.raises(SourceError, match=r"expected a folder of images at .*, found none \(seen from /"):
            Source(path=str(path)).fingerprint()


def test_objects_of_a_bucket_are_read_as_a_folder_is(store: Store) -> None:
    if not store.uri.startswith("s3://"):
        pytest.skip("a local folder is read without a store")
    for key in (
        "cat/a.png",
        "cat/notes.txt",
        "dog/b c.png",
        "dog/.hidden.png",
        *(f"dog/{n}.gif" for n in range(20)),
    ):
        store.put(f"raw/{key}", key.encode())
    source = Source(path=f"{store.uri}/raw")
    assert source.classes() == ("cat", "dog")
    items = {item.name: item.data for item in source.items() if isinstance(item, Item)}
    assert items == {name: name.encode() for name in items}
    assert len(items) == 22
    assert refused(source) == {"cat/notes.txt": "not an image"}
    before = source.fingerprint()
    store.put("raw/cat/a.png", b"other")
    assert source.fingerprint() != before
    with pytest.raises(SourceError, match="got an empty folder"):
        Source(path=f"{store.uri}/empty").fingerprint()
    with pytest.raises(UserError, match="no-such-bucket"):
        Source(path="s3://no-such-bucket/raw").fingerprint()
