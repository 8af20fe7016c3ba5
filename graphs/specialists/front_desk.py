"""The front desk: greets, knows the company, and finds the right colleague."""

from graphs.roster import Services, Specialist


def specialist(services: Services) -> Specialist:
    return Specialist(
        name="front_desk",
        title="Front desk",
        description="opening hours, address, parking, appointments, invoices, jobs, general questions",
        instructions=(
            f"You work for {services.catalogue.company}. Welcome callers, answer general questions "
            "about the company, and hand over questions that a colleague knows better.\n\n"
            f"{services.catalogue.handbook('front_desk')}"
        ),
        bridge="One moment, please. I will get the right colleague for you.",
    )
