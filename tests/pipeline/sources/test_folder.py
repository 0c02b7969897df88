"""A folder of images: what is taken, what is rejected by name, and that a mark follows the content."""

import os
from pathlib import Path

import pytest

from pipeline.errors import SourceError, UserError
from pipeline.sources import folder, parse_source
from pipeline.sources.folder import Source
from pipeline.store import Store, open_store
from tests.pipeline.sources.reading import items, labels, pieces, rejected


def write(root: Path, **files: str) -> Path:
    """Files by name ("__" is "/", "_" before the end is "."): their content matters to nobody here."""
    for name, content in files.items():
        file = root / name.replace("__", "/").replace("_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


def test_the_first_subfolder_is_the_class(tmp_path: Path) -> None:
    write(tmp_path, dog__b_png="b", cat__deep__a_JPG="a", cat__c_tiff="c", bird__d_webp="d", cat__e_bmp="")
    source = Source(path=str(tmp_path))
    assert source.classes() == ("bird", "cat", "dog")
    assert list(labels(source).items()) == [
        ("bird/d.webp", "bird"),
        ("cat/c.tiff", "cat"),
        ("cat/deep/a.JPG", "cat"),
        ("cat/e.bmp", "cat"),
        ("dog/b.png", "dog"),
    ]
    assert [item.data for item in items(source)] == [b"d", b"c", b"a", b"", b"b"]


def test_without_subfolders_there_are_no_labels(tmp_path: Path) -> None:
    source = Source(path=str(write(tmp_path, a_png="a", b_gif="b")))
    assert source.classes() == ()
    assert labels(source) == {"a.png": None, "b.gif": None}


def test_an_empty_class_folder_is_a_class(tmp_path: Path) -> None:
    (write(tmp_path, cat__a_png="a") / "dog").mkdir()
    assert Source(path=str(tmp_path)).classes() == ("cat", "dog")


def test_a_relative_path_is_relative_to_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "images", a_png="a")
    monkeypatch.chdir(tmp_path)
    assert labels(Source(path="images")) == {"a.png": None}


def test_what_is_no_image_is_rejected_by_name_and_hidden_files_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "MAX_FILE_BYTES", 5)
    write(tmp_path, cat__a_png="a", cat__notes_txt="n", beside_png="b", cat__large_png="123456")
    for hidden in (".hidden", "cat/.DS_Store", ".git/a.png", "__MACOSX/cat/._a.png"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / hidden).write_text("h")
    source = Source(path=str(tmp_path))
    assert source.classes() == ("cat",)
    assert labels(source) == {"cat/a.png": "cat"}
    assert rejected(source) == {
        "beside.png": "beside the class folders, in none of them",
        "cat/large.png": "larger than 5 bytes: 6",
        "cat/notes.txt": "not an image",
    }


def test_links_are_followed_only_to_files_inside(tmp_path: Path) -> None:
    root = write(tmp_path / "root", cat__a_png="a")
    write(tmp_path / "outside", private_png="s")
    write(tmp_path / "root2", private_png="s")  # begins as the root's own name does
    (root / "cat" / "inside.png").symlink_to(root / "cat" / "a.png")
    (root / "cat" / "out.png").symlink_to(tmp_path / "outside" / "private.png")
    (root / "cat" / "beside.png").symlink_to(tmp_path / "root2" / "private.png")
    (root / "cat" / "gone.png").symlink_to(root / "cat" / "nothing.png")
    (root / "cat" / "itself.png").symlink_to(root / "cat" / "itself.png")
    (root / "cat" / "loop").symlink_to(root)
    (root / "dog").symlink_to(tmp_path / "outside")
    os.mkfifo(root / "cat" / "pipe.png")
    source = Source(path=str(root))
    assert source.classes() == ("cat",)
    assert labels(source) == {"cat/a.png": "cat", "cat/inside.png": "cat"}
    assert rejected(source) == {
        "cat/beside.png": "a link out of the folder",
        "cat/gone.png": "cannot be read: No such file or directory",
        "cat/itself.png": "cannot be read: Too many levels of symbolic links",
        "cat/loop": "a link to a folder",
        "cat/out.png": "a link out of the folder",
        "cat/pipe.png": "not a regular file",
        "dog": "a link to a folder",
    }


def test_names_of_any_bytes_become_different_texts_and_are_read(tmp_path: Path) -> None:
    names = (b"\xff\n.png", b"\\xff\\n.png", b"\\\\xff\\n.png", b"100%25.png", "é.png".encode(), "\u200b.png".encode())
    for number, name in enumerate(names):
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_text(str(number))
    found = {item.name: item.data for item in items(Source(path=str(tmp_path)))}
    assert found == {
        "\\xff\\n.png": b"0",
        "\\\\xff\\\\n.png": b"1",
        "\\\\\\\\xff\\\\n.png": b"2",
        "100%25.png": b"3",
        "é.png": b"4",
        "\\u200b.png": b"5",
    }
    assert all(piece.at.isascii() for piece in pieces(Source(path=str(tmp_path))))


def test_a_mark_is_another_one_after_a_change_and_no_other_moves(tmp_path: Path) -> None:
    root = write(tmp_path, cat__a_png="a", dog__b_png="b")
    before = {piece.name: piece.mark for piece in pieces(Source(path=str(root)))}
    (root / "cat" / "a.png").write_text("A")
    os.utime(root / "cat" / "a.png", ns=(1, 1))
    write(root, dog__c_png="a")
    after = {piece.name: piece.mark for piece in pieces(Source(path=str(root)))}
    assert after["dog/b.png"] == before["dog/b.png"]
    assert after["cat/a.png"] != before["cat/a.png"]


def test_what_changed_or_went_since_it_was_listed_ends_the_reading(tmp_path: Path) -> None:
    source = Source(path=str(write(tmp_path, a_png="a", b_png="b", c_png="c", d_png="d")))
    listed = pieces(source)
    write(tmp_path, a_png="longer", b_png="")
    (tmp_path / "c.png").unlink()
    os.utime(tmp_path / "d.png", ns=(1, 1))  # of the same size
    for piece in listed:
        with pytest.raises(SourceError, match=f"rests while it is read, got one where {piece.name} changed"):
            list(source.read([piece]))


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
    with pytest.raises(SourceError, match=message):
        list(Source(path=str(write(tmp_path, **files))).pieces())


def test_a_missing_folder_is_one_clear_line(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", write(tmp_path, a_png="a") / "a.png"):
        source = Source(path=str(path))
        for ask in (source.classes, lambda source=source: list(source.pieces())):
            with pytest.raises(SourceError, match=r"expected a folder of images at .*, found none \(seen from /"):
                ask()


def test_objects_of_a_bucket_are_read_as_a_folder_is(s3_uri: str) -> None:
    store = open_store(s3_uri)
    keys = ("cat/a.png", "cat/notes.txt", "dog/b c.png", "dog/.hidden.png", "zebra.png")
    for key in (*keys, *(f"dog/{n}.gif" for n in range(40))):
        store.put(f"raw/{key}", key.encode())
    source = Source(path=f"{s3_uri}/raw/")
    assert source.classes() is None
    found = items(source)
    assert {item.name: item.data for item in found} == {item.name: item.name.encode() for item in found}
    assert {item.label for item in found} == {"cat", "dog"}
    assert len(found) == 42
    assert [item.name for item in found] == sorted((item.name for item in found), key=lambda name: name.split("/"))
    assert rejected(source) == {
        "cat/notes.txt": "not an image",
        "zebra.png": "beside the class folders, in none of them",
    }
    listed = pieces(source)
    store.put("raw/cat/a.png", b"other")
    store.delete("raw/dog/0.gif")
    assert {piece.name for piece in set(listed) - set(pieces(source))} == {"cat/a.png", "dog/0.gif"}
    for name in ("cat/a.png", "dog/0.gif"):
        with pytest.raises(SourceError, match=f"rests while it is read, got one where {name} changed"):
            list(source.read([next(piece for piece in listed if piece.name == name)]))


def test_a_bucket_that_is_none_or_empty_is_one_clear_line(s3_uri: str) -> None:
    with pytest.raises(SourceError, match="got an empty folder"):
        list(Source(path=f"{s3_uri}/empty").pieces())
    with pytest.raises(UserError, match="no-such-bucket"):
        list(Source(path="s3://no-such-bucket/raw").pieces())


@pytest.mark.parametrize("folders", [True, False])
def test_a_large_bucket_is_listed_without_being_held(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch, folders: bool
) -> None:
    monkeypatch.setattr(folder, "PEEKED_OBJECTS", 10)
    store: Store = open_store(s3_uri)
    for number in range(25):
        store.put(f"{number:03d}.png", b"x")
    if folders:
        store.put("x/a.png", b"x")
    source = parse_source({"kind": "folder", "path": s3_uri})
    assert labels(source) == ({"x/a.png": "x"} if folders else {f"{number:03d}.png": None for number in range(25)})
    assert len(rejected(source)) == (25 if folders else 0)


def test_reads_of_a_bucket_overlap_within_a_bound_of_bytes(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "READ_AHEAD_BYTES", 10)
    store = open_store(s3_uri)
    for number in range(12):
        store.put(f"a/{number:02d}.png", bytes([number]) * (1 + 11 * (number == 5)))
    assert [item.data[:1] for item in items(Source(path=s3_uri)) if isinstance(item.data, bytes)] == [
        bytes([number]) for number in range(12)
    ]
