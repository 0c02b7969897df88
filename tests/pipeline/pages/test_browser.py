"""The pages in a real browser: they answer to mouse and keyboard, ask no other origin and have no serious fault."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from pipeline.artifacts import Release
from pipeline.records import load
from pipeline.release.contents import Contents
from pipeline.release.runtime import OnnxSampler
from pipeline.store import Store
from tests.made_pages import CLASSES, SAMPLES, SIDE
from tests.pipeline.pages.conftest import OpenPage

REPORT = "tiny-gan/1.html"
PHONE = {"width": 360, "height": 740}
FIRST_LOAD_BYTES = 2_000_000


def tiles(page: Page) -> Any:
    return page.locator('.tile[data-group="samples"]:visible')


def start_sampler(page: Page) -> None:
    page.get_by_role("button", name="Load the model").click()
    page.locator("#live-image[data-drawn]").wait_for(timeout=60_000)


def drawn(page: Page) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """The live image as the browser has it, (height, width)."""
    script = """() => {
        const canvas = document.getElementById("live-image");
        return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
    }"""
    return np.array(page.evaluate(script), np.uint8).reshape(SIDE, SIDE, 4)[..., 0]


@pytest.mark.parametrize("path", ["index.html", REPORT, "tiny-vae/1.html"])
def test_a_page_asks_its_own_origin_alone_and_nothing_goes_wrong(served: str, open_page: OpenPage, path: str) -> None:
    watched = open_page(f"{served}/{path}")
    if path != "index.html":
        start_sampler(watched.page)
        assert any(url.endswith("model.onnx") for url in watched.requests)
    origin = served.removesuffix("/gallery")
    assert [url for url in watched.requests if not url.startswith((f"{origin}/", "data:"))] == []
    assert watched.errors == []


def test_the_policy_of_a_page_lets_nothing_in_from_elsewhere(served: str, open_page: OpenPage) -> None:
    watched = open_page(f"{served}/{REPORT}")
    loaded = watched.page.evaluate(
        """() => new Promise((done) => {
            const image = new Image();
            image.onload = () => done(true);
            image.onerror = () => done(false);
            image.src = "http://localhost:9/elsewhere.png";
        })"""
    )
    assert not loaded and any("Content Security Policy" in error for error in watched.errors)


def test_the_first_load_is_small(served: str, open_page: OpenPage, pages_store: Store) -> None:
    watched = open_page(f"{served}/{REPORT}")
    asked = [url for url in watched.requests if not url.startswith("data:")]
    assert asked == [f"{served}/{REPORT}"]  # one file is all of it
    assert len(pages_store.get(f"gallery/{REPORT}")) < FIRST_LOAD_BYTES


def test_an_image_is_enlarged_by_a_click_and_the_keys_lead_on(served: str, open_page: OpenPage) -> None:
    page = open_page(f"{served}/{REPORT}").page
    viewer, caption = page.get_by_role("dialog"), page.locator("#viewer-caption")
    tiles(page).nth(2).click()
    expect(viewer).to_be_visible()
    expect(caption).to_contain_text(f"seed 2 (3 of {SAMPLES})")
    page.keyboard.press("ArrowRight")
    expect(caption).to_contain_text("seed 3 ")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(caption).to_contain_text("seed 1 ")
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(tiles(page).nth(1)).to_be_focused()


def test_the_images_are_one_stop_of_the_tab_key_and_arrows_move_within(served: str, open_page: OpenPage) -> None:
    page = open_page(f"{served}/{REPORT}").page
    tiles(page).first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(tiles(page).nth(2)).to_be_focused()
    page.keyboard.press("End")
    expect(tiles(page).nth(SAMPLES - 1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(tiles(page).nth(SAMPLES - 1)).to_be_focused()  # it comes back once the dialog is closed
    page.keyboard.press("Tab")
    expect(page.locator('.tile[data-group="samples"]:focus')).to_have_count(0)


def test_a_closing_dialog_does_not_pull_back_a_reader_who_has_moved_on(served: str, open_page: OpenPage) -> None:
    page = open_page(f"{served}/{REPORT}").page
    tiles(page).first.click()
    page.evaluate("""() => new Promise((closed) => {
        const viewer = document.getElementById("viewer");
        viewer.addEventListener("close", closed);
        viewer.close();
        document.querySelector("button[data-filter]").focus();  // before the event, which the browser sends later
    })""")
    expect(page.locator("button[data-filter]").first).to_be_focused()


def test_the_filter_leaves_one_class(served: str, open_page: OpenPage) -> None:
    page = open_page(f"{served}/{REPORT}").page
    expect(tiles(page)).to_have_count(SAMPLES)
    pill = page.get_by_role("button", name="zero", exact=True).first
    pill.click()
    expect(tiles(page)).to_have_count(SAMPLES // len(CLASSES))
    assert {tile.get_attribute("data-label") for tile in tiles(page).all()} == {"0"}
    expect(pill).to_have_attribute("aria-pressed", "true")
    tiles(page).first.click()
    expect(page.locator("#viewer-caption")).to_contain_text(f"of {SAMPLES // len(CLASSES)})")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="All", exact=True).click()
    expect(tiles(page)).to_have_count(SAMPLES)


@pytest.mark.parametrize(("seed", "label"), [(0, 0), (7, 2), (3 * 2**32 + 5, 1), (2**63 - 1, 2)])
def test_the_browser_makes_the_image_of_a_seed(
    served: str, open_page: OpenPage, pages_store: Store, seed: int, label: int
) -> None:
    page = open_page(f"{served}/{REPORT}").page
    start_sampler(page)
    page.locator("#live-seed").fill(str(seed))
    page.locator("#live-class").select_option(str(label))
    page.locator(f'#live-image[data-drawn^="{seed}/{label}/"]').wait_for()
    sampler = OnnxSampler("here", Contents(pages_store, load(pages_store, "releases/tiny-gan/1", Release), None).read)
    expected = sampler.images([seed], [label])[0, ..., 0].astype(int)
    assert np.abs(drawn(page) - expected).max() <= 1  # another build of onnxruntime may round otherwise
    assert expected.std() > 20  # a picture, not a plain field that anything would match


def test_a_slider_and_a_new_seed_change_the_image(served: str, open_page: OpenPage) -> None:
    page = open_page(f"{served}/{REPORT}").page
    start_sampler(page)
    before = drawn(page)
    page.get_by_label("Direction 1").fill("3")
    page.locator('#live-image[data-drawn="0/0/3,0,0,0,0"]').wait_for()
    moved = drawn(page)
    assert np.abs(moved.astype(int) - before).mean() > 5
    page.get_by_role("button", name="Centre the sliders").click()
    page.locator('#live-image[data-drawn="0/0/0,0,0,0,0"]').wait_for()
    assert (drawn(page) == before).all()
    page.get_by_role("button", name="New seed").click()
    expect(page.locator("#live-seed")).not_to_have_value("0")
    page.locator('#live-image:not([data-drawn^="0/"])').wait_for()
    assert (drawn(page) != before).any()


def test_a_seed_that_is_none_is_said_in_a_line(served: str, open_page: OpenPage) -> None:
    page = open_page(f"{served}/{REPORT}").page
    start_sampler(page)
    page.locator("#live-seed").fill(str(2**63))
    expect(page.locator("#live-message")).to_contain_text("a whole number from 0")
    expect(page.locator("#live-seed")).to_have_attribute("aria-invalid", "true")


def test_a_sample_opens_in_the_live_sampler_as_it_is(served: str, open_page: OpenPage) -> None:
    page = open_page(f"{served}/{REPORT}").page
    tiles(page).nth(5).click()
    page.get_by_role("link", name="Open in the live sampler").click()
    page.locator('#live-image[data-drawn^="5/2/"]').wait_for(timeout=60_000)
    published = page.evaluate(
        """() => {
            const image = document.querySelectorAll('.tile[data-group="samples"] img')[5];
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext("2d").drawImage(image, 0, 0);
            return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
        }"""
    )
    pixels = np.array(published, np.uint8).reshape(SIDE, SIDE, 4)[..., 0]
    assert np.abs(drawn(page) - pixels.astype(int)).max() <= 1


def test_a_hostile_class_name_is_text(served: str, open_page: OpenPage) -> None:
    watched = open_page(f"{served}/{REPORT}")
    page = watched.page
    start_sampler(page)
    assert page.title() == "tiny-gan 1"
    for name in CLASSES:
        expect(page.locator("[data-filter]").get_by_text(name, exact=True)).to_have_count(1)
        expect(page.locator("#live-classes button").get_by_text(name, exact=True)).to_have_count(1)
    assert page.locator("main b, main i, main script").count() == 0
    assert watched.errors == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("path", ["index.html", REPORT, "tiny-gan/2.html"])
def test_axe_finds_no_fault(served: str, open_page: OpenPage, axe: str, path: str, dark: bool) -> None:
    page = open_page(f"{served}/{path}", dark=dark).page
    page.evaluate(axe)
    states = [page.evaluate("() => axe.run()")]
    if path == REPORT:
        start_sampler(page)
        page.get_by_text("What was measured, and how").click()
        states.append(page.evaluate("() => axe.run()"))
        tiles(page).first.click()
        states.append(page.evaluate("() => axe.run()"))
    found = [
        f"{fault['impact']} {fault['id']}: {node['html'][:160]} {node['failureSummary']}"
        for state in states
        for fault in state["violations"]
        if fault["impact"] in ("moderate", "serious", "critical")
        for node in fault["nodes"]
    ]
    assert found == []
    assert all(len(state["passes"]) > 10 for state in states)  # it did look


@pytest.mark.parametrize("path", ["index.html", REPORT, "tiny-gan/2.html"])
def test_a_phone_needs_no_sideways_scrolling(served: str, open_page: OpenPage, path: str) -> None:
    page = open_page(f"{served}/{path}", **PHONE).page
    assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"]


def test_dark_mode_is_dark_and_light_is_light(served: str, open_page: OpenPage) -> None:
    def paper(dark: bool) -> str:
        page = open_page(f"{served}/{REPORT}", dark=dark).page
        return str(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))

    assert paper(dark=True) == "rgb(19, 19, 22)" and paper(dark=False) == "rgb(251, 250, 247)"


def test_every_image_has_a_text_and_every_section_is_there(served: str, open_page: OpenPage) -> None:
    page = open_page(f"{served}/tiny-gan/2.html").page
    assert page.locator("main img:not([alt]), main img[alt='']").count() == 0
    for section in ("samples", "live", "beside", "walk", "training", "figures", "curves", "copies", "lineage", "files"):
        expect(page.locator(f"section#{section}")).to_be_visible()
    assert page.locator(".panel h3").all_inner_texts() == ["tiny-gan 2", "tiny-vae 1", "real, held out"]
    expect(page.locator("#figures")).to_contain_text("tiny-gan@1")  # the champion that it is held against
    expect(page.locator("#figures")).to_contain_text("it must be more than 0")  # and by how much it fell short


def test_the_published_report_stands_alone_as_a_file(open_page: OpenPage, pages_store: Store, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_bytes(pages_store.get("releases/tiny-gan/1/report.html"))
    watched = open_page(file.as_uri())
    tiles(watched.page).nth(1).click()
    expect(watched.page.get_by_role("dialog")).to_be_visible()
    expect(watched.page.locator("#live")).to_contain_text("atelier gallery")
    assert watched.errors == [] and {url.split(":")[0] for url in watched.requests} <= {"file", "data"}


def test_a_download_is_the_release_s_file(served: str, open_page: OpenPage) -> None:
    page = open_page(f"{served}/{REPORT}").page
    with page.expect_download() as download:
        page.get_by_role("link", name="model.safetensors").click()
    assert Path(download.value.path()).read_bytes() == b"weights a"
