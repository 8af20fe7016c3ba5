"""The catalogue: a knowledge folder's products and handbooks, read once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from graphs.errors import CatalogueInvalid, ToolRefused
from graphs.knowledge.speakable import in_words

DEMO = Path(__file__).parent / "demo"


class Product(BaseModel):
    """A plan or an add-on; `period` reads like "a month" or "once"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    aliases: tuple[str, ...] = ()
    price_dollars: int = Field(ge=0, lt=1_000_000)
    period: str
    note: str = ""

    @property
    def price_sentence(self) -> str:
        """The price as a voice says it."""
        return f"The {self.name} costs {in_words(self.price_dollars)} dollars {self.period}. {self.note}".strip()


class ProductFile(BaseModel):
    """What `products.json` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    company: str = Field(min_length=1)
    products: tuple[Product, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A company's products, and its handbooks by specialist."""

    company: str
    products: tuple[Product, ...]
    handbooks: Mapping[str, str]

    def product(self, name: str) -> Product:
        """The product of that name or alias. Raises ToolRefused."""
        wanted = name.casefold()
        for product in self.products:
            if wanted in {known.casefold() for known in (product.name, *product.aliases)}:
                return product
        raise ToolRefused(f"There is no product {name!r}.")

    def handbook(self, specialist: str) -> str:
        """What the specialist knows, as Markdown; empty when the folder has no file for them."""
        return self.handbooks.get(specialist, "")


def load_catalogue(folder: Path = DEMO) -> Catalogue:
    """Read `products.json` and every `<specialist>.md` of a folder. Raises CatalogueInvalid."""
    try:
        stock = ProductFile.model_validate_json((folder / "products.json").read_bytes())
        handbooks = {page.stem: page.read_text(encoding="utf-8") for page in sorted(folder.glob("*.md"))}
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise CatalogueInvalid(f"The knowledge folder {folder} cannot be used: {error}") from error
    return Catalogue(company=stock.company, products=stock.products, handbooks=handbooks)
