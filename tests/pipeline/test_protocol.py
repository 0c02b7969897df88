"""Figures of different protocols are never compared."""

from typing import Any

import pytest

from pipeline.artifacts import Evaluation, Figure, Protocol
from pipeline.errors import ProtocolMismatch, RecordError, UserError
from pipeline.protocol import WHY, check_comparable, differences, figures_of
from tests.made import PROTOCOL

OTHERWISE: dict[str, Any] = {name: "another" for name in Protocol.model_fields} | {
    "num_samples": 7,
    "num_real": 8,
    "seed": 9,
    "importance_samples": 10,
}


def evaluation(protocol: Protocol = PROTOCOL, **values: float) -> Evaluation:
    figures = {name: Figure(value=value, unit="share", num_samples=100) for name, value in values.items()}
    return Evaluation(
        code_version="1",
        id="e" * 16,
        run="runs/1",
        dataset=protocol.dataset,
        protocol=protocol,
        extractor_note="a note",
        figures=figures,
    )


@pytest.mark.parametrize("field", Protocol.model_fields)
def test_protocols_that_differ_in_any_field_are_refused_with_the_reason(field: str) -> None:
    other = PROTOCOL.model_copy(update={field: OTHERWISE[field]})
    assert other.id != PROTOCOL.id
    with pytest.raises(ProtocolMismatch) as caught:
        check_comparable(PROTOCOL, other)
    message = str(caught.value)
    assert f"differ in {field}: {getattr(PROTOCOL, field)}, not {OTHERWISE[field]}: {WHY[field]}" in message
    assert isinstance(caught.value, UserError) and "\n" not in message


def test_equal_protocols_may_be_compared() -> None:
    again = Protocol.model_validate_json(PROTOCOL.model_dump_json())
    check_comparable(PROTOCOL, again)
    assert differences(PROTOCOL, again) == []
    assert again.id == PROTOCOL.id
    assert str(again) == f"atelier-2 ({PROTOCOL.id})"


def test_several_differences_are_counted() -> None:
    other = PROTOCOL.model_copy(update={"seed": 1, "num_samples": 7})
    with pytest.raises(ProtocolMismatch, match=r"differ in num_samples: 100, not 7 \(and 1 more\): the bias"):
        check_comparable(PROTOCOL, other)


def test_a_figure_is_compared_where_both_evaluations_have_it() -> None:
    ours, theirs = evaluation(recall=0.5, precision=0.25), evaluation(recall=0.75, coverage=1.0)
    found = figures_of(ours, theirs, "recall")
    assert [figure.value for figure in found] == [0.5, 0.75]
    with pytest.raises(RecordError, match=r"expected a figure that both evaluations have \(recall\), got 'coverage'"):
        figures_of(ours, theirs, "coverage")
    with pytest.raises(ProtocolMismatch):
        figures_of(ours, evaluation(PROTOCOL.model_copy(update={"seed": 1}), recall=0.75), "recall")
