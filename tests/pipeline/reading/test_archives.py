"""Downloads and archives: fetched once, verified before they are unpacked, and refused whole for one bad name."""

import gzip
import hashlib
import io
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SourceError
from pipeline.reading import archives, downloads
from pipeline.reading.archives import unpack, unpacked
from pipeline.reading.downloads import fetched
from tests.pipeline.reading.web import Web, serving

FILES = {"flowers/rose/1.png": b"rose", "flowers/tulip/2.png": b"tulip" * 1000, "flowers/empty.txt": b""}


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as server:
        yield server


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tgz(files: dict[str, bytes]) -> bytes:
    return gzip.compress(tar(files), mtime=0)


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def put(folder: Path, data: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "archive").write_bytes(data)
    return folder / "archive"


def refused(folder: Path, data: bytes, message: str) -> str:
    """The archive is refused by this message, one line that names it, and nothing is left behind."""
    file = put(folder, data)
    with pytest.raises(SourceError, match=message) as caught:
        unpack(file, folder / "out", "http://host/a.tar")
    assert [path.name for path in folder.iterdir()] == ["archive"]
    assert str(caught.value).startswith("http://host/a.tar: expected ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- fetching ---


@pytest.mark.parametrize(
    "data",
    [tar(FILES), tgz(FILES), zipped(FILES), zipped(FILES, zipfile.ZIP_STORED)],
    ids=["tar", "tgz", "zip", "stored"],
)
def test_an_archive_is_fetched_once_and_unpacked(tmp_path: Path, web: Web, data: bytes) -> None:
    web.files["/a"] = data
    folder = unpacked(f"{web.url}/a", sha256(data), tmp_path / "downloads")
    assert tree(folder) == FILES
    assert unpacked(f"{web.url}/a", sha256(data), tmp_path / "downloads") == folder
    assert web.asked == [("/a", None)]
    assert sorted(path.name for path in folder.parent.iterdir()) == [sha256(data), f"{sha256(data)}.lock"]


def test_a_file_of_another_digest_is_refused_before_it_is_unpacked(tmp_path: Path, web: Web) -> None:
    web.files["/a"] = tar(FILES)
    with pytest.raises(
        SourceError, match=rf"/a: expected SHA-256 {'0' * 64}, got {sha256(tar(FILES))}; correct source"
    ):
        unpacked(f"{web.url}/a", "0" * 64, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["0" * 64 + ".lock"]


def test_a_broken_transfer_goes_on_where_it_stopped(tmp_path: Path, web: Web) -> None:
    data = os.urandom(5 << 20)
    web.files["/a"], web.statuses["/a"], web.cuts["/a"] = data, [503], [3 << 20]
    assert fetched(f"{web.url}/a", sha256(data), tmp_path).read_bytes() == data
    ranges = [asked for _, asked in web.asked]
    assert ranges[:2] == [None, None]
    assert ranges[2] is not None
    assert 1 << 20 < int(ranges[2][6:-1]) <= 3 << 20


def test_a_file_that_changed_between_two_halves_is_fetched_anew(tmp_path: Path, web: Web) -> None:
    data, other = os.urandom(3 << 20), os.urandom(3 << 20)
    web.files["/a"], web.cuts["/a"] = other, [2 << 20]
    switch = threading.Timer(0.2, lambda: web.files.update({"/a": data}))
    switch.start()
    assert fetched(f"{web.url}/a", sha256(data), tmp_path).read_bytes() == data
    switch.join()
    assert [asked is None for _, asked in web.asked] == [True, False, True]


def test_what_never_comes_is_one_clear_line(tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    web.statuses["/a"] = [500] * 5
    with pytest.raises(SourceError, match=r"/a: expected a file, got HTTPStatusError\('status 500'\) 2 times"):
        fetched(f"{web.url}/a", "0" * 64, tmp_path)
    with pytest.raises(SourceError, match="/none: expected a file, got status 404; correct the path"):
        fetched(f"{web.url}/none", "0" * 64, tmp_path)
    with pytest.raises(SourceError, match="expected a file, got ConnectError"):
        fetched("http://127.0.0.1:9/none", "0" * 64, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}


def test_more_bytes_than_the_limit_are_not_taken(tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MAX_DOWNLOAD_BYTES", 1000)
    web.files["/a"] = bytes(1001)
    with pytest.raises(SourceError, match=r"expected at most 1,000 bytes \(limit, or free disk\), got 1001"):
        fetched(f"{web.url}/a", "0" * 64, tmp_path)
    monkeypatch.setattr(downloads, "KEPT_FREE_BYTES", 1 << 60)
    with pytest.raises(SourceError, match=r"expected at most 0 bytes \(limit, or free disk\)"):
        fetched(f"{web.url}/a", "0" * 64, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/b", None),
        ("/a", "expected a file after at most 5 redirects"),
        ("https://127.0.0.1:9/b", "expected redirects to http:// only, got one to https"),
        ("file:///etc/passwd", "expected redirects to http:// only, got one to file"),
        ("http://example.com/b", r"expected https://HOST/FILE \(http:// on loopback only\)"),
    ],
)
def test_redirects_lead_only_to_allowed_addresses(tmp_path: Path, web: Web, target: str, message: str | None) -> None:
    web.files["/b"], web.redirects["/a"] = b"there", target
    if message is None:
        assert fetched(f"{web.url}/a", sha256(b"there"), tmp_path).read_bytes() == b"there"
        return
    with pytest.raises(SourceError, match=message):
        fetched(f"{web.url}/a", sha256(b"there"), tmp_path)


def test_several_processes_fetch_once(tmp_path: Path, web: Web) -> None:
    data = web.files["/a"] = tar({f"{n}": os.urandom(1000) for n in range(500)})
    program = (
        "import sys; from pathlib import Path; from pipeline.reading.archives import unpacked; "
        "print(len(list(unpacked(sys.argv[1], sys.argv[2], Path(sys.argv[3])).iterdir())))"
    )
    command = [sys.executable, "-c", program, f"{web.url}/a", sha256(data), str(tmp_path)]
    with ThreadPoolExecutor(3) as pool:
        runs = pool.map(lambda _: subprocess.run(command, check=True, capture_output=True, timeout=60), range(3))
        assert [run.stdout.strip() for run in runs] == [b"500"] * 3
    assert len(web.asked) == 1


def test_what_a_killed_process_left_is_cleared(tmp_path: Path, web: Web) -> None:
    data = web.files["/a"] = tar(FILES)
    (tmp_path / f"{sha256(data)}.unpacking" / "flowers").mkdir(parents=True)
    (tmp_path / f"{sha256(data)}.unpacking" / "left.png").write_bytes(b"half")
    (tmp_path / f"{sha256(data)}.part").write_bytes(b"half")
    assert tree(unpacked(f"{web.url}/a", sha256(data), tmp_path)) == FILES


# --- hostile names ---

HOSTILE = {
    "/etc/passwd": "has an absolute name",
    "../outside.png": "has a part that is empty, '.' or '..'",
    "a/../../outside.png": "has a part that is empty, '.' or '..'",
    "a//b.png": "has a part that is empty",
    "././a.png": "has a part that is empty",
    "a/./b.png": "has a part that is empty",
    "..\\outside.png": "has a backslash or a control character",
    "C:/outside.png": "has an absolute name",
    "C:outside.png": "has an absolute name",
    "a\nb.png": "has a backslash or a control character",
    "x" * 256: "has a name of more than 1024 bytes, or 255 in one part",
    "/".join(["x" * 200] * 6): "has a name of more than 1024 bytes",
    "/".join("x" * 17): "lies in more than 16 folders",
}


@pytest.mark.parametrize("make", [tar, zipped])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_refused_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, name: str
) -> None:
    written: list[Any] = []
    monkeypatch.setattr(archives, "_write", lambda *arguments: written.append(arguments))
    said = refused(tmp_path / "in", make({"good.png": b"good", name: b"bad", "last.png": b""}), "nothing was unpacked")
    assert HOSTILE[name] in said
    assert repr(name[:200]) in said
    assert written == []


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"V", "a member of type b'V'"),
    ],
)
def test_what_is_neither_file_nor_folder_is_refused(tmp_path: Path, kind: bytes, said: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc"
        archive.addfile(info)
    refused(tmp_path / "in", out.getvalue(), f"got member 'a.png', which is {said}; nothing was unpacked")


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("a.png")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc")
    refused(tmp_path / "in", out.getvalue(), "got member 'a.png', which is a symbolic link")


@pytest.mark.parametrize("make", [tar, zipped])
def test_one_place_takes_one_member(tmp_path: Path, make: Any) -> None:
    refused(tmp_path / "in", make({"a": b"1", "a/b": b"2"}), "expected 'a' to be a file or a folder, got both")
    refused(tmp_path / "in", make({"a/b/c": b"1", "a/b": b"2"}), "expected 'a/b' to be a file or a folder, got both")
    refused(tmp_path / "in", make({"a": b"1", "./a": b"2"}), "expected each member once, got 'a' twice")
    refused(tmp_path / "in", make({}), "expected an archive with files, got none in it|expected a zip archive")


def test_a_name_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a\udcff")
    data = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + bytes(1024)
    refused(tmp_path / "in", data, r"expected member names in UTF-8, got b'a\\xff'")
    data = zipped({"xyz": b""}).replace(b"xyz", b"x\xffz")
    refused(tmp_path / "in", data, r"expected member names in UTF-8, got b'x\\xffz'")


@pytest.mark.parametrize("make", [tar, tgz, zipped])
def test_folders_and_dotted_names_of_common_tools_are_taken(tmp_path: Path, make: Any) -> None:
    (tmp_path / "src" / "empty").mkdir(parents=True)
    (tmp_path / "src" / "a.png").write_bytes(b"a")
    if make is zipped:
        shutil.make_archive(str(tmp_path / "made"), "zip", tmp_path / "src")
        file = tmp_path / "made.zip"
    else:
        file = tmp_path / "made.tar"
        subprocess.run(["tar", "-cf", file, "-C", tmp_path / "src", "."], check=True)
    unpack(file, tmp_path / "out", "here")
    assert tree(tmp_path / "out") == {"a.png": b"a"}
    assert (tmp_path / "out" / "empty").is_dir()


# --- bombs and lies ---


@pytest.mark.parametrize("make", [tgz, zipped])
def test_a_bomb_is_refused_before_a_byte_is_written(tmp_path: Path, make: Any) -> None:
    refused(tmp_path / "in", make({f"{n}": bytes(20 << 20) for n in range(3)}), "a decompression bomb")


@pytest.mark.parametrize("make", [tar, zipped])
def test_limits_of_members_bytes_and_disk_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    data = make({f"{n}": os.urandom(1000) for n in range(5)})
    with monkeypatch.context() as patch:
        patch.setattr(archives, "MAX_MEMBERS", 4)
        refused(tmp_path / "in", data, "expected at most 4 members, got more; nothing was unpacked")
    with monkeypatch.context() as patch:
        patch.setattr(archives, "MAX_UNPACKED_BYTES", 4999)
        refused(tmp_path / "in", data, "expected members of at most 4,999 bytes unpacked .*, got more at '4'")
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "KEPT_FREE_BYTES", 1 << 60)
        refused(tmp_path / "in", data, "expected members of at most 0 bytes unpacked .*a full disk")


def central(data: bytes, at: int, value: int) -> bytes:
    """A zip with a 32-bit field of the first directory entry changed."""
    start = data.index(b"PK\1\2") + at
    return data[:start] + struct.pack("<L", value) + data[start + 4 :]


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (24, 10, "got other bytes by its size: it unpacks to more"),
        (24, 5000, "got other bytes by its size"),
        (16, 7, "got other bytes by its CRC-32"),
        (42, 1, "expected members that share no bytes"),
        (20, 10_000_000, "found not room for 'a'"),
    ],
)
def test_a_zip_whose_directory_lies_leaves_nothing(tmp_path: Path, at: int, value: int, message: str) -> None:
    refused(tmp_path / "in", central(zipped({"a": b"x" * 1000, "b": b"y"}), at, value), message)


def test_a_member_that_is_another_one_at_its_place_is_refused(tmp_path: Path) -> None:
    data = zipped({"a": b"x" * 1000})
    refused(tmp_path / "in", data[:30] + b"z" + data[31:], "found not 'a' where the directory says")


def test_a_zip_whose_members_share_bytes_is_refused(tmp_path: Path) -> None:
    """Fifield's construction in small: two entries of the directory lead to one content."""
    data = zipped({"a": b"x" * 1000, "b": b"x" * 1000})
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4) + 42
    refused(tmp_path / "in", data[:second] + struct.pack("<L", 0) + data[second + 4 :], "members that share no bytes")


def test_other_methods_and_encryption_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "in", zipped({"a": b"x"}, zipfile.ZIP_LZMA), "stored or deflated, got 'a' with method 14")
    data = bytearray(zipped({"a": b"x"}))
    data[data.index(b"PK\1\2") + 8] |= 1
    refused(tmp_path / "in", bytes(data), "got 'a' encrypted")


@pytest.mark.parametrize("make", [tar, tgz, zipped])
def test_an_archive_that_is_cut_short_is_refused(tmp_path: Path, make: Any) -> None:
    whole = make({"a": os.urandom(1000), "b": os.urandom(10)})
    end = len(whole.rstrip(b"\0")) if make is tar else len(whole)
    for length in range(1, end, 7):
        refused(tmp_path / "in", whole[:length], "expected ")


def test_a_gzip_of_a_changed_byte_is_refused(tmp_path: Path) -> None:
    whole = tgz({"a": os.urandom(1000)})
    # Near its end the archive is zeros, where a changed distance may unpack to the same bytes.
    for position in (*range(12, 1000, 31), *range(len(whole) - 8, len(whole))):
        data = whole[:position] + bytes([whole[position] ^ 8]) + whole[position + 1 :]
        refused(tmp_path / "in", data, "expected ")


def test_a_zip64_is_read(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in FILES.items():
            with archive.open(name, "w", force_zip64=True) as stream:
                stream.write(data)
    unpack(put(tmp_path / "in", out.getvalue()), tmp_path / "out", "here")
    assert tree(tmp_path / "out") == FILES
    wide = wide_zip({"a": b"x" * 100, "b": b"y"})
    with zipfile.ZipFile(io.BytesIO(wide)) as archive:
        assert archive.read("b") == b"y"
    unpack(put(tmp_path / "in", wide), tmp_path / "wide", "here")
    assert tree(tmp_path / "wide") == {"a": b"x" * 100, "b": b"y"}


def wide_zip(files: dict[str, bytes]) -> bytes:
    """A zip that keeps all sizes and places in 64 bits."""
    body, directory, most = b"", b"", 0xFFFFFFFF
    for name, data in files.items():
        fixed = (0, 0, 0, 0, zlib.crc32(data))
        extra = struct.pack("<2H3Q", 1, 24, len(data), len(data), len(body))
        directory += struct.pack("<4s2H5H", b"PK\1\2", 45, 45, *fixed[:4], 0)[:16]
        directory += struct.pack("<3L5H2L", fixed[4], most, most, len(name), len(extra), 0, 0, 0, 0, most)
        directory += name.encode() + extra
        body += struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, 0, fixed[4], len(data), len(data), len(name), 0)
        body += name.encode() + data
    start, end = len(body), len(body) + len(directory)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, len(files), len(files), len(directory), start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    return body + directory + end64 + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, most, most, 0)
