"""A recipe's source section: what is taken, and what a mistake says."""

import subprocess
import sys
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.sources import kinds, parse_source


def test_kinds_are_the_files_of_the_folder() -> None:
    assert {"digits", "folder", "idx", "npz", "parquet", "webdataset"} == set(kinds())


@pytest.mark.parametrize(
    "section",
    [
        {"kind": "digits"},
        {"kind": "idx", "path": "a"},
        {"kind": "folder", "path": "s3://bucket/a"},
        {"kind": "parquet", "path": "https://host/a.parquet", "sha256": "0" * 64, "label_column": None},
        {"kind": "webdataset", "path": "a", "class_names": ["a", "b"], "label_field": "l"},
        {"kind": "npz", "path": "https://host/a.tgz#b/c", "sha256": "0" * 64},
    ],
)
def test_a_section_survives_being_written_and_read(section: dict[str, Any]) -> None:
    source = parse_source(section)
    assert parse_source(source.model_dump(mode="json")) == source
    assert source.kind == section["kind"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            "digits",
            "source: expected a mapping with a kind (digits, folder, idx, npz, parquet, webdataset), got 'digits'",
        ),
        ({}, "source.kind: expected one of digits, folder, idx, npz, parquet, webdataset, got None"),
        ({"kind": "video"}, "source.kind: expected one of digits, folder, idx, npz, parquet, webdataset, got 'video'"),
        ({"kind": ["idx"]}, "source.kind: expected one of digits, folder, idx, npz, parquet, webdataset, got ['idx']"),
        ({"kind": "folder"}, "source.path: expected this field, which is required; the fields of folder are"),
        ({"kind": "digits", "size": 8}, "source.size: unknown field; the fields of digits are kind"),
        ({"kind": "folder", "path": 3}, "source.path: Input should be a valid string, got 3"),
        ({"kind": "folder", "path": ""}, "source.path: String should have at least 1 character, got ''"),
        (
            {"kind": "folder", "path": "http://x/y.zip"},
            "source.path: expected https://HOST/FILE (http:// on loopback only), got 'http://x/y.zip'",
        ),
        (
            {"kind": "folder", "path": "ftp://x/y.zip"},
            "source.path: expected a local path, s3://bucket/prefix, or https://host/FILE that ends in .tar, .tar.gz",
        ),
        (
            {"kind": "npz", "path": "https://x/y.rar"},
            "source.path: expected a file that ends in .tar, .tar.gz, .tgz, .zip, .npz, got 'https://x/y.rar'",
        ),
        ({"kind": "folder", "path": "https://u:p@x/y.zip"}, "source.path: expected an address without a password"),
        ({"kind": "folder", "path": "https://x:y/y.zip"}, "source.path: expected an address https://HOST/FILE"),
        (
            {"kind": "folder", "path": "https://x/y.zip#a/../b"},
            "source.path: expected a folder inside the archive after '#'",
        ),
        ({"kind": "folder", "path": "s3://a"}, "source.path: expected s3://bucket or s3://bucket/prefix, got 's3://a'"),
        ({"kind": "folder", "path": "https://x/y.zip"}, "source.sha256: expected 64 hex digits in lower case beside"),
        (
            {"kind": "folder", "path": "https://x/y.zip", "sha256": "A" * 64},
            "source.sha256: expected 64 hex digits in lower case beside",
        ),
        (
            {"kind": "idx", "path": "raw", "sha256": "0" * 64},
            "source.sha256: expected no sha256 beside a path that is not https://, got '000",
        ),
        ({"kind": "npz", "path": "a", "labels_key": "y"}, "source.labels_key: expected images_key beside labels_key"),
        (
            {"kind": "webdataset", "path": "a", "class_names": ["a", "a"]},
            "source.class_names: expected different class names, none of them empty, got ['a', 'a']",
        ),
        ({"kind": "parquet", "path": "a", "image_column": None}, "source.image_column: Input should be a valid string"),
    ],
)
def test_a_mistake_is_one_line_with_the_choices(section: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_source(section)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_importing_ingest_and_sources_pulls_in_no_heavy_library() -> None:
    heavy = "{'numpy', 'PIL', 'sklearn', 'boto3', 'torch', 'webdataset', 'pyarrow', 'httpx', 'filelock'}"
    modules = ", ".join(f"pipeline.sources.{kind}" for kind in kinds())
    program = f"import sys, pipeline.ingest, {modules}; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
