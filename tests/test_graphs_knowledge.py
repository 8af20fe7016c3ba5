"""The catalogue: a folder of handbooks and products, spoken as words."""

import json
import re
from pathlib import Path

import pytest

from graphs.errors import CatalogueInvalid, ToolRefused
from graphs.knowledge.catalogue import load_catalogue
from graphs.knowledge.speakable import in_words
from graphs.specialists import ROSTER


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (49, "forty nine"),
        (100, "one hundred"),
        (129, "one hundred twenty nine"),
        (2500, "two thousand five hundred"),
        (999_999, "nine hundred ninety nine thousand nine hundred ninety nine"),
    ],
)
def test_numbers_are_said_as_words(number: int, words: str) -> None:
    assert in_words(number) == words


@pytest.mark.parametrize("number", [-1, 1_000_000])
def test_numbers_nobody_says_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        in_words(number)


def test_products_are_found_by_name_and_alias_in_any_case() -> None:
    catalogue = load_catalogue()
    assert catalogue.product("Pro") is catalogue.product("premium plan")
    with pytest.raises(ToolRefused, match="moon plan"):
        catalogue.product("moon plan")


def test_every_specialist_of_the_demo_has_a_handbook_without_figures() -> None:
    catalogue = load_catalogue()
    for name in ROSTER:
        assert catalogue.handbook(name).startswith("# ")
        assert not re.search(r"\d|[$%&/]", catalogue.handbook(name))
    assert not any(re.search(r"\d", product.price_sentence) for product in catalogue.products)


def test_a_specialist_without_a_file_has_an_empty_handbook() -> None:
    assert load_catalogue().handbook("astrology") == ""


@pytest.mark.parametrize(
    "text", ["", "{", json.dumps({"company": "X", "products": []}), json.dumps({"company": "X", "prizes": []})]
)
def test_a_broken_folder_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "products.json").write_text(text)
    with pytest.raises(CatalogueInvalid, match=tmp_path.name):
        load_catalogue(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogueInvalid, match="nowhere"):
        load_catalogue(tmp_path / "nowhere")
