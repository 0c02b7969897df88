"""The tar reader against the stock library: the same members from each format, and an error where that one stops."""

import gzip
import io
import tarfile
from typing import BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SourceError
from pipeline.reading.tars import TarReader

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=150)


def tar(members: dict[str, bytes], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format, encoding="utf-8") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 0.5
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def read(data: bytes, max_bytes: int = 1 << 40) -> dict[str, bytes]:
    reader = TarReader(io.BytesIO(data), "a.tar", max_bytes)
    return {member.name: reader.read(member.bytes) for member in reader}


@given(st.dictionaries(NAMES, st.binary(max_size=1500), max_size=6), st.sampled_from(FORMATS[1:]))
def test_the_members_are_those_that_the_stock_library_wrote(members: dict[str, bytes], tar_format: int) -> None:
    assert read(tar(members, tar_format)) == members


@pytest.mark.parametrize("tar_format", FORMATS)
def test_long_names_of_each_format_are_whole(tar_format: int) -> None:
    members = {"a" * 80 + "/" + "b" * 80 + ".png": b"x", "c.png": b"y"}
    assert read(tar(members, tar_format)) == members


@given(st.lists(st.binary(max_size=1500), min_size=1, max_size=4), st.data())
def test_each_truncation_is_an_error(contents: list[bytes], data: st.DataObject) -> None:
    whole = tar({f"{number}": content for number, content in enumerate(contents)}, tarfile.USTAR_FORMAT)
    members_end = sum(512 + len(content) + -len(content) % 512 for content in contents)
    length = data.draw(st.integers(0, members_end + 511))
    with pytest.raises(SourceError, match="cut short"):
        read(whole[:length])
    assert len(read(whole[: members_end + 512])) == len(contents)


@given(st.integers(0, 511), st.integers(1, 255))
def test_each_changed_byte_of_a_header_is_an_error(position: int, change: int) -> None:
    data = bytearray(tar({"a": b"1", "b": b"2"}, tarfile.USTAR_FORMAT))
    data[1024 + position] ^= change
    with pytest.raises(SourceError, match=r"a\.tar: expected"):
        read(bytes(data))


@given(st.binary(max_size=2000))
def test_any_bytes_are_an_error_or_members(data: bytes) -> None:
    for start in (b"", tar({"a": b"1"}, tarfile.USTAR_FORMAT)[:1024]):
        try:
            read(start + data)
        except SourceError as error:
            assert "\n" not in str(error)


def test_content_that_is_not_read_is_skipped_and_never_overrun() -> None:
    reader = TarReader(io.BytesIO(tar({"a": b"1" * 700, "b": b"2"})), "a.tar")
    found = []
    for member in reader:
        found.append((member.name, reader.read(3)))
        assert reader.read(10_000) == b"1" * 697 or member.name == "b"
    assert found == [("a", b"111"), ("b", b"2")]


def with_size(kind: bytes, size: int, content: bytes = b"") -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + content


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (with_size(tarfile.XHDTYPE, 1 << 40), "expected an extended tar header of at most 1,048,576 bytes, got 1,0"),
        (with_size(tarfile.GNUTYPE_LONGNAME, 1 << 30), "expected an extended tar header of at most"),
        (with_size(tarfile.XHDTYPE, 20, b"99 path=x\n".ljust(512)), "expected pax records in a tar header"),
        (with_size(tarfile.XHDTYPE, 20, b"0 path=x\n".ljust(512)), "expected pax records"),
        (with_size(tarfile.XHDTYPE, 12, b"12 size=1e9\n".ljust(512)) + with_size(b"0", 1), "expected a size in a pax"),
        (with_size(tarfile.XGLTYPE, 9, b"9 path=x\n".ljust(512)), "expected each tar member to have its own name"),
    ],
)
def test_headers_that_lie_are_one_clear_line(data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        read(data)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_no_utf_8_is_an_error() -> None:
    info = tarfile.TarInfo("a\udcff")
    data = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + bytes(1024)
    with pytest.raises(SourceError, match=r"expected member names in UTF-8, got b'a\\xff'"):
        read(data)


def test_what_a_gzip_unpacks_to_is_bounded() -> None:
    packed = gzip.compress(tar({"a": bytes(50 << 20)}))
    with gzip.open(io.BytesIO(packed)) as stream:
        reader = TarReader(cast(BinaryIO, stream), "a.tgz", 1 << 20)
        with pytest.raises(SourceError, match=r"a\.tgz: expected at most 1,048,576 bytes unpacked, got more"):
            list(reader)
