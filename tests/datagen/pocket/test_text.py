"""Every word of the world is a token of its own, and every other text still becomes tokens."""

from pathlib import Path

import torch
from transformers import CLIPTokenizer

from datagen.pocket import text, world
from tests.datagen.pocket.conftest import CAPTIONS


def test_words_get_ids_that_survive_saving(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    for each in (tokenizer, loaded):
        assert each.tokenize("Two red CARS, sky!") == ["two</w>", "red</w>", "cars</w>", ",</w>", "sky</w>", "!</w>"]
        sky, road = each("sky").input_ids, each("road").input_ids
        assert len(sky) == len(road) == 3
        assert sky != road
        assert each.model_max_length == text.MAX_LENGTH
    assert tokenizer(list(CAPTIONS)).input_ids == loaded(list(CAPTIONS)).input_ids


def test_unknown_words_fall_apart_into_known_pieces(tokenizer: CLIPTokenizer) -> None:
    for strange in ("zebra", "naïve 東京", "x9-\u20ac"):
        ids = tokenizer(strange).input_ids[1:-1]
        assert ids
        assert tokenizer.eos_token_id not in ids


def test_the_vocabulary_does_not_depend_on_the_order_of_captions() -> None:
    forth, back = (text.build_tokenizer(captions) for captions in (CAPTIONS, CAPTIONS[::-1]))
    assert forth.get_vocab() == back.get_vocab()


def test_the_longest_captions_of_the_world_fit() -> None:
    scenes = [world.render_scene(seed, held_out=True) for seed in world.SEEDS["test"][:12]]
    longest = ", ".join(
        [
            "a dashcam photo of a street in clear weather at night",
            *(f"many yellow {name}" for name in ("cars", "buses", "bicycles", "people")),
            *("a sidewalk", "traffic signs", "vegetation"),
        ]
    )
    captions = [scene.captions.sentence for scene in scenes] + [", ".join(world.TAXONOMY.names), longest]
    tokenizer = text.build_tokenizer(captions)
    assert max(len(ids) for ids in tokenizer(captions).input_ids) <= text.MAX_LENGTH


def test_the_encoder_reads_the_end_of_a_prompt(tokenizer: CLIPTokenizer) -> None:
    torch.manual_seed(0)
    encoder = text.build_encoder(tokenizer, width=16, layers=1, heads=2).eval()
    ids = text.tokenize(tokenizer, ["sky", "a very " + "very " * 100 + "long one", ""])
    assert ids.shape == (3, text.MAX_LENGTH)
    found = encoder(ids)
    assert found.last_hidden_state.shape == (3, text.MAX_LENGTH, 16)
    assert torch.equal(found.pooler_output[0], found.last_hidden_state[0, 2])  # the end token behind "sky"
