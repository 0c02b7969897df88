"""The gallery and the reports as files: what they say of a store, and what the server hands out."""

import base64
import http.client
import io
import itertools
import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from pipeline import releases
from pipeline.artifacts import Release
from pipeline.errors import IntegrityError, UserError
from pipeline.pages import gallery, published, runtime, shown
from pipeline.pages.gather import Around, gather
from pipeline.pages.serve import GalleryServer
from pipeline.records import load
from pipeline.release.verify import verify
from pipeline.store import Store, open_store
from tests import made_pages, made_releases


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A folder: one test below looks at a bucket."""
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def without_npm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose PATH leads to no npm."""
    monkeypatch.setenv("PATH", "/nowhere")


@contextmanager
def serving(store: Store) -> Iterator[GalleryServer]:
    with GalleryServer(store, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: GalleryServer, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("GET", path, headers=headers)
    reply = connection.getresponse()
    found = reply.status, reply.read(), {name.lower(): value for name, value in reply.getheaders()}
    connection.close()
    return found


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_the_gallery_of_any_store_is_served_from_it(
    request: pytest.FixtureRequest, store: Store, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if scheme == "s3":
        store = open_store(request.getfixturevalue("s3_uri"))
    monkeypatch.setenv("PATH", "/nowhere")  # from here on: the bucket's server was started by name
    made_pages.fill(store)
    assert gallery.build(store, print) == 3
    with serving(store) as server:
        status, page, headers = get(server, urlsplit(server.url).path)
        assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
        for href in re.findall(r'<a href="([^"]+)"', page.decode()):
            assert get(server, f"/gallery/{href}")[0] == 200
        status, report, _ = get(server, "/gallery/tiny-gan/1.html")
        links = re.findall(r'<li><div><a href="\.\./\.\./([^"]+)"', report.decode())
        assert len(links) == 10 and all(get(server, f"/{link}")[0] == 200 for link in links)
        assert get(server, "/")[0] == 302


def test_nothing_else_of_a_store_is_served(store: Store, without_npm: None) -> None:
    made = made_pages.fill(store)[0]
    gallery.build(store, print)
    with serving(store) as server:
        for path in (f"/{made.run}/run.json", "/gallery/../runs", "/gallery/%2e%2e/aliases/tiny-gan/champion.json",
                     "/releases/../../../etc/passwd", "/gallery//index.html", "/gallery/nothing.html"):  # fmt: skip
            assert get(server, path)[:2] == (404, b"no page there\n"), path
        status, body, _ = get(server, "/gallery/index.html", Host="elsewhere.example:80")
        assert status == 403 and body.startswith(b"expected a request to 127.0.0.1")
        inert = get(server, f"/{made.ref}/README.md")[2]
        assert "sandbox" in inert["content-security-policy"] and inert["x-content-type-options"] == "nosniff"


def test_a_page_that_did_not_change_is_not_sent_again(store: Store, without_npm: None) -> None:
    made_releases.published(store)
    gallery.build(store, print)
    with serving(store) as server:
        _, _, headers = get(server, "/gallery/index.html")
        assert get(server, "/gallery/index.html", **{"If-None-Match": headers["etag"]})[:2] == (304, b"")


def test_a_taken_port_is_said_in_a_line(store: Store) -> None:
    with GalleryServer(store, 0) as server, pytest.raises(UserError, match=r"--port: expected a free port"):
        GalleryServer(store, server.server_port)


def test_without_npm_the_pages_say_how_to_add_the_sampler(store: Store, without_npm: None) -> None:
    made_pages.fill(store)
    said: list[str] = []
    assert gallery.build(store, said.append) == 3
    assert said == [f"gallery: without the live sampler: npm is not installed; {runtime.ADD}"]
    page = store.get("gallery/tiny-gan/1.html").decode()
    assert "The live sampler is left out: npm is not installed" in page and "Load the model" not in page


def test_a_runtime_of_other_bytes_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "FILES", {**runtime.FILES, runtime.MODULE: "0" * 64})
    with pytest.raises(IntegrityError, match=r"onnxruntime-web .*: expected SHA-256 0000"):
        gallery.build(store, print)


def test_a_release_without_a_sampler_has_a_page_that_says_so(store: Store, without_npm: None) -> None:
    made_releases.published(store)  # no model.onnx, no classes shown, no previews, no metrics
    gallery.build(store, print)
    page = store.get("gallery/tiny-vae/1.html").decode()
    assert "expected model.onnx, got a release without it" in page
    for section in ("walk", "training", "curves", "copies"):
        assert f'<section id="{section}"' not in page


def test_a_retracted_release_shows_no_image(store: Store, without_npm: None) -> None:
    made_pages.fill(store)
    releases.retract(store, "tiny-gan", 1, None, who="Ann", why="<b>a person</b> asked")
    gallery.build(store, print)
    page = store.get("gallery/tiny-gan/1.html").decode()
    assert "&lt;b&gt;a person&lt;/b&gt; asked" in page and "data:image" not in page and "releases.open" not in page
    assert "tiny-gan 1" not in store.get("gallery/tiny-vae/1.html").decode()  # beside which it is shown no more
    index = store.get("gallery/index.html").decode()
    assert "taken back" in index


def test_a_broken_release_takes_no_other_page_away(store: Store, without_npm: None) -> None:
    made_pages.fill(store)
    store.put("releases/tiny-gan/2/samples/samples-000000.tar", b"no tar")
    said: list[str] = []
    assert gallery.build(store, said.append) == 2
    assert any(
        re.search(r"without tiny-gan@2: .*samples-000000.tar: expected [\d,]+ bytes, got 6", line) for line in said
    )


def test_a_champion_is_held_against_the_one_before(store: Store, without_npm: None) -> None:
    made_pages.fill(store)
    releases.promote(store, "tiny-gan", 2, "champion", who="Ann", why="by hand")
    gallery.build(store, print)
    page = store.get("gallery/tiny-gan/2.html").decode()
    assert "tiny-gan@1, the champion before" in page and '<span class="badge">champion</span>' in page
    assert "tiny-gan@2, the champion" in store.get("gallery/tiny-gan/1.html").decode()


def test_figures_of_another_protocol_are_not_shown_beside(store: Store, without_npm: None) -> None:
    made_pages.fill(store)
    shelf = gallery.read_shelf(store)
    second = next(one for one in shelf.releases if one.ref == "releases/tiny-gan/2")
    other = second.model_copy(update={"protocol": second.protocol.model_copy(update={"num_samples": 7})})
    content = gather(store, other, gallery.around(store, shelf, other))
    assert "another protocol (num_samples: 7, not 100)" in content.standing.note
    assert content.standing.rival == "" and all(row.rival is None for row in content.rows)


def test_the_report_is_a_file_of_the_release_and_the_first_one_holds(store: Store) -> None:
    made = made_pages.fill(store)
    first = load(store, made[0].ref, Release)
    assert "report.html" in {entry.name for entry in first.files}
    assert verify(store, first, (), share=0).faults == ()
    page = store.get(f"{first.ref}/report.html")
    assert b"No release of this name was champion" in page and b"Small &lt;i&gt;made-up&lt;/i&gt; images." in page
    # By now there is a champion, and the other model: a second attempt would write another report.
    assert published.write_report(store, made_pages.recipe(), "gan", first) == page
    assert b"tiny-gan@1, the champion when this was published" in store.get("releases/tiny-gan/2/report.html")


def test_a_kill_at_any_write_leaves_a_report_that_the_manifest_states(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = made_releases.parents(store)
    for writes in itertools.count():
        with monkeypatch.context() as patch:
            made_releases.kill_at_write(patch, store, writes)
            try:
                release = releases.publish(store, made_releases.recipe(), "vae", *refs)
                break
            except made_releases.Killed:
                pass
        # Meanwhile the store goes on: another release becomes champion, and reports change.
        if writes == 3:
            other = releases.publish(store, made_releases.recipe(), "vae", *made_releases.parents(store, "b"))
            releases.promote(store, "tiny-vae", other.number, "champion", who="a test", why="meanwhile")
    assert verify(store, release, (), share=0).faults == ()


def test_published_images_stand_in_a_page_with_what_they_say_of_themselves(store: Store) -> None:
    release = made_pages.fill(store)[0]
    found = gather(store, release, Around())
    assert len(found.samples) == made_pages.SAMPLES
    data = base64.b64decode(found.samples[4].src.partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["atelier:release"] == "tiny-gan/1" and image.info["atelier:seed"] == "4"


def test_large_images_are_reduced_to_what_a_page_can_hold() -> None:
    import numpy as np

    from pipeline import pictures

    rng = np.random.default_rng(0)
    pngs = [pictures.encode_png(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)) for _ in range(6)]
    urls = shown.fitting(pngs, 20_000, 128)
    assert 0 < len(urls) < 6 and sum(map(len, urls)) < 28_000
    with Image.open(io.BytesIO(base64.b64decode(urls[0].partition(",")[2]))) as image:
        assert image.size == (128, 128) and b"trainedAlgorithmicMedia" in image.info["xmp"]


def test_a_broken_preview_is_left_out(store: Store, without_npm: None) -> None:
    release = made_pages.fill(store)[0]
    store.put(f"{release.run}/previews/{200:09d}.png", b"no PNG")
    found = gather(store, release, Around())
    assert [frame.caption for frame in found.film] == ["step 100", "step 300"]


def test_json_in_a_page_cannot_end_its_script(store: Store, without_npm: None) -> None:
    made_pages.fill(store)
    gallery.build(store, print)
    page = store.get("gallery/tiny-gan/1.html").decode()
    body = page.partition('id="live-data">')[2].partition("</script>")[0]
    assert json.loads(body)["classes"] == list(made_pages.CLASSES)


def test_a_page_of_large_images_is_small_all_the_same(
    store: Store, without_npm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made_pages, "SIDE", 160)  # noise, which packs worst
    made_pages.fill(store)
    gallery.build(store, print)
    for name in ("gallery/tiny-gan/2.html", "releases/tiny-gan/2/report.html"):
        assert 300_000 < len(store.get(name)) < 2_000_000


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Whatever happens inside, the process does not outlive it."""
    try:
        yield
    finally:
        process.kill()


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_the_verb_prints_an_address_that_a_browser_can_open(
    request: pytest.FixtureRequest, store: Store, scheme: str
) -> None:
    if scheme == "s3":
        store = open_store(request.getfixturevalue("s3_uri"))
    made_releases.published(store)
    heard = ["env", "--default-signal=INT"]  # a shell makes what it starts in the background deaf to it
    command = [*heard, sys.executable, "-m", "pipeline.cli", "gallery", "--store", store.uri, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, ended(process):
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127.0.0.1:[0-9]+/gallery/index.html", line)
        assert found, line
        with urllib.request.urlopen(found[0], timeout=10) as reply:  # noqa: S310 - an address of this machine
            assert b"tiny-vae" in reply.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
