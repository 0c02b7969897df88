"""A recipe's source section: what is taken, and what a mistake says."""

import subprocess
import sys
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.sources import kinds, parse_source


def test_kinds_are_the_files_of_the_folder() -> None:
    assert {"digits", "folder", "idx"} <= set(kinds())


@pytest.mark.parametrize(
    "section", [{"kind": "digits"}, {"kind": "idx", "path": "a"}, {"kind": "folder", "path": "s3://bucket/a"}]
)
def test_a_section_survives_being_written_and_read(section: dict[str, Any]) -> None:
    source = parse_source(section)
    assert parse_source(source.model_dump(mode="json")) == source
    assert source.kind == section["kind"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("digits", "source: expected a mapping with a kind (digits, folder, idx), got 'digits'"),
        ({}, "source.kind: expected one of digits, folder, idx, got None"),
        ({"kind": "video"}, "source.kind: expected one of digits, folder, idx, got 'video'"),
        ({"kind": ["idx"]}, "source.kind: expected one of digits, folder, idx, got ['idx']"),
        ({"kind": "folder"}, "source.path: expected this field, which is required; the fields of folder are"),
        ({"kind": "digits", "size": 8}, "source.size: unknown field; the fields of digits are kind"),
        ({"kind": "folder", "path": 3}, "source.path: Input should be a valid string, got 3"),
        ({"kind": "folder", "path": ""}, "source.path: String should have at least 1 character, got ''"),
        (
            {"kind": "folder", "path": "http://x/y"},
            "source.path: expected a local folder or s3://bucket/prefix, got 'http://x/y'",
        ),
    ],
)
def test_a_mistake_is_one_line_with_the_choices(section: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_source(section)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_importing_ingest_pulls_in_no_heavy_library() -> None:
    heavy = "{'numpy', 'PIL', 'sklearn', 'boto3', 'torch', 'webdataset'}"
    program = f"import sys, pipeline.ingest, pipeline.sources.folder; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
