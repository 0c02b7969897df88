"""A record as a person reads it: no line of it is a program's notation."""

from pipeline import __version__
from pipeline.artifacts import Evaluation, Figure, Run, file_entry
from pipeline.listing import record_table
from pipeline.records import Located
from tests.made import PROTOCOL


def rows(record: Evaluation | Run) -> dict[str, str]:
    table = record_table(Located(uri=f"file:///store/{record.ref}", record=record))
    fields, values = (list(map(str, column.cells)) for column in table.columns)
    return dict(zip(fields, values, strict=True))


def test_figures_are_shown_with_unit_and_interval_and_nested_fields_by_their_names() -> None:
    figures = {
        "recall": Figure(value=0.5, low=0.25, high=0.75, unit="share", num_samples=9),
        "density": Figure(value=1.25, unit="a neighbourhood", num_samples=9),
    }
    record = Evaluation(
        code_version=__version__, id="e", run="runs/r", dataset="datasets/d/1", protocol=PROTOCOL,
        extractor_note="A note.", figures=figures, files=(file_entry("copies.png", b"1234"),),
    )  # fmt: skip
    shown = rows(record)
    assert shown["recall"] == "0.5 (0.25 to 0.75) share"
    assert shown["density"] == "1.25 a neighbourhood"
    assert shown["files"] == "1 files, 4 bytes"
    assert shown["protocol"].splitlines()[:2] == ["name atelier-2", "dataset datasets/digits/1"]


def test_a_runs_configuration_and_metrics_are_a_line_each() -> None:
    record = Run(
        code_version=__version__, id="r", recipe="tiny", model="vae", family="vae", dataset="datasets/d/1", steps=2,
        config={"seed": 0, "warm_start": None, "augment": {"flip": 0.5}, "sizes": [1, 2], "none": []},
        images_seen=20, files=(), metrics={"vae/loss": -48.68722915649414},
    )  # fmt: skip
    shown = rows(record)
    assert shown["config"].splitlines() == [
        "seed 0",
        "warm_start -",
        "augment.flip 0.5",
        "sizes 1",
        "sizes 2",
        "none -",
    ]
    assert shown["metrics"] == "vae/loss -48.6872"
    assert shown["files"] == "0 files, 0 bytes"
