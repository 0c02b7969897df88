"""The model card: front matter that the Hub's own library reads, figures as measured, limits, the notice on top."""

from huggingface_hub import ModelCard

from pipeline.release.card import retracted
from pipeline.store import Store
from tests.made_releases import published


def card_of(store: Store) -> bytes:
    release = published(store)
    return store.get(f"{release.ref}/README.md")


def test_the_hub_reads_the_front_matter(store: Store) -> None:
    card = ModelCard(card_of(store).decode())
    assert card.data.license == "mit" and card.data.pipeline_tag == "unconditional-image-generation"
    assert card.data.model_name == "tiny-vae"
    assert card.data.eval_results is not None
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["frechet_distance"].metric_value == 5.0
    assert (results["recall"].dataset_name, results["recall"].dataset_split) == ("tiny", "test")


def test_a_card_states_intervals_data_limits_and_lineage(store: Store) -> None:
    text = card_of(store).decode()
    for part in (
        "| Fréchet distance | 5 | 4 to 6 |  | lower | squared feature distance |",
        "100 samples held against 50 images of the split `test`",
        "8 images in `train`, 2 images in `test`; the model saw `train` alone.",
        "Classes: `zero`, `one`.",
        "it is no FID",
        "Whether it repeats training images was not measured.",
        "- run `runs/aaaaaaaaaaaaaaaa`",
        "## Licence\n\n`mit`",
    ):
        assert part in text
    assert "\n\n\n" not in text


def test_a_notice_of_retraction_is_the_first_thing_read_and_the_front_matter_still_is_one(store: Store) -> None:
    text = retracted(card_of(store), "2026-01-01T00:00:00+00:00", "ann", "a person asked").decode()
    card = ModelCard(text)
    assert card.data.license == "mit"
    assert card.text.lstrip().startswith("> **Retracted** on 2026-01-01T00:00:00+00:00 by ann: a person asked\n")
