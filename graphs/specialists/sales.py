"""Sales: plans, prices and orders, with prices looked up in the catalogue."""

from collections.abc import Mapping

from graphs.knowledge.catalogue import Catalogue
from graphs.roster import Services, Specialist, Tool


def specialist(services: Services) -> Specialist:
    return Specialist(
        name="sales",
        title="Sales",
        description="plans, prices, costs, free trial, discounts, buying, upgrading, contracts, business",
        instructions=(
            f"You work for {services.catalogue.company}. Help callers to choose a plan. "
            "Always look a price up before you name it.\n\n"
            f"{services.catalogue.handbook('sales')}"
        ),
        tools=(look_up_price(services.catalogue),),
        bridge="One moment, please. I will get a colleague who can help with that.",
    )


def look_up_price(catalogue: Catalogue) -> Tool:
    async def run(arguments: Mapping[str, object], *, idempotency_key: str) -> Mapping[str, object]:
        product = catalogue.product(str(arguments["product"]))
        return {
            "product": product.name,
            "price_dollars": product.price_dollars,
            "period": product.period,
            "summary": product.price_sentence,
        }

    return Tool(
        name="look_up_price",
        description="Look up the price, the cost, of a plan or an add-on: how much it is.",
        parameters={
            "type": "object",
            "properties": {"product": {"type": "string", "enum": [product.name for product in catalogue.products]}},
            "required": ["product"],
            "additionalProperties": False,
        },
        run=run,
        has_side_effects=False,
    )
