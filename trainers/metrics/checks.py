"""What every figure asks of its input."""

from torch import Tensor

from pipeline.errors import UserError


class MetricInputError(UserError):
    """A figure was asked of features or classes that it is not defined on."""


def pair(real_ND: Tensor, fake_MD: Tensor, rows: int, fake_rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Both sets in float64. Raises MetricInputError."""
    real_ND = finite("real features", real_ND, rows)
    fake_MD = finite("fake features", fake_MD, rows if fake_rows is None else fake_rows)
    check_width(real_ND.shape[1], fake_MD.shape[1])
    return real_ND, fake_MD


def finite(name: str, x_ND: Tensor, rows: int) -> Tensor:
    """The set in float64. Raises MetricInputError."""
    if x_ND.ndim != 2 or x_ND.shape[1] == 0:
        raise MetricInputError(
            f"expected {name} (N, D), got the shape {tuple(x_ND.shape)}; flatten each image's features"
        )
    check_rows(name, len(x_ND), rows)
    x_ND = x_ND.detach().double()
    # A sum is finite only where all is: one pass, where looking at every value takes three.
    bad = 0 if x_ND.sum().isfinite() else int((~x_ND.isfinite()).any(1).sum())
    if bad:
        raise MetricInputError(
            f"expected finite {name}, got NaN or infinity in {bad:,} of {len(x_ND):,} rows; "
            "look at the images that they are of"
        )
    return x_ND


def check_width(real: int, fake: int) -> None:
    """Raise MetricInputError where the features of two sets are of different size."""
    if real != fake:
        raise MetricInputError(
            f"expected real and fake features of one size, got {real} and {fake}; compute both with the same extractor"
        )


def check_rows(name: str, found: int, rows: int) -> None:
    """Raise MetricInputError for fewer rows than a figure needs."""
    if found < rows:
        raise MetricInputError(f"expected {rows} rows of {name} or more, got {found}; evaluate on more images")


def checked_k(k: int) -> int:
    """The number of neighbours. Raises MetricInputError."""
    if k < 1:
        raise MetricInputError(f"expected a number of neighbours of 1 or more, got {k}; the papers use 3 and 5")
    return k
