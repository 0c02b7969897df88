"""From content to a page's bytes: jinja2 templates that escape everything, style and script within the page.

The page says by its own Content-Security-Policy what a browser may do with it: run these scripts (by their digests) and
those of its own origin, show images of its own origin and of the page itself, and load nothing from anywhere else.
"""

import base64
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.pages.charts import CURVE_HEIGHT, CURVE_WIDTH
from pipeline.pages.content import Card, Folder, Report, Sampler

if TYPE_CHECKING:
    from jinja2 import Environment

FILES = Path(__file__).parent / "files"
REPORT = "report.html"


def report(content: Report, sampler: Sampler, gallery_at: str = "") -> bytes:
    """The page of a release; `gallery_at` is the way to the gallery, empty where the page stands alone."""
    scripts = ["page.js", "sampler.js"] if sampler.runtime and content.drawn.latent_size else ["page.js"]
    live = {
        "runtime": sampler.runtime,
        "model": f"{content.files_at}model.onnx",
        "latentSize": content.drawn.latent_size,
        "directions": content.drawn.directions,
        "classes": content.classes,
    }
    return _page(
        "report.html.j2",
        scripts,
        content=content,
        sampler=sampler,
        gallery_at=gallery_at,
        # A script element may hold any JSON, once nothing in it can end the element.
        live=json.dumps(live, separators=(",", ":")).replace("<", "\\u003c"),
    )


def gallery(cards: Sequence[Card]) -> bytes:
    """The page over all releases."""
    return _page("gallery.html.j2", ["page.js"], cards=cards)


def record(content: Folder) -> bytes:
    """The page of a record's folder."""
    return _page("record.html.j2", ["page.js"], content=content)


def _page(template: str, scripts: Sequence[str], **values: Any) -> bytes:
    style = (FILES / "page.css").read_text(encoding="utf-8")
    sources = [(FILES / script).read_text(encoding="utf-8") for script in scripts]
    allowed = " ".join(map(_digest, sources))
    policy = (
        f"default-src 'none'; script-src 'self' 'wasm-unsafe-eval' {allowed}; style-src {_digest(style)}; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template(template)
    shape = {"curve_width": CURVE_WIDTH, "curve_height": CURVE_HEIGHT, "version": __version__}
    return page.render(style=style, scripts=sources, policy=policy, **shape, **values).encode()


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(FILES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["size"] = _size
    return found


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _size(num_bytes: int) -> str:
    """Bytes as a person reads them."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    power = min(4, (len(str(num_bytes)) - 1) // 3)
    return f"{num_bytes / 1000**power:.3g} {('kB', 'MB', 'GB', 'TB')[power - 1]}"
