"""Technical support: faults, and tickets for what a call cannot repair."""

from collections.abc import Mapping

from graphs.ports import OpenTicketPort
from graphs.roster import Services, Specialist, Tool


def specialist(services: Services) -> Specialist:
    return Specialist(
        name="tech_support",
        title="Technical support",
        description=(
            "something does not work: router, slow or broken internet, wireless, password, app, "
            "error codes, technician, support ticket"
        ),
        instructions=(
            f"You work for {services.catalogue.company}. Help callers to repair faults, one step at a time. "
            "Open a ticket when the caller asks for one or the steps did not help.\n\n"
            f"{services.catalogue.handbook('tech_support')}"
        ),
        tools=(open_ticket(services.open_ticket),),
        bridge="One moment, please. I will get a colleague from the right team.",
    )


def open_ticket(store: OpenTicketPort) -> Tool:
    async def run(arguments: Mapping[str, object], *, idempotency_key: str) -> Mapping[str, object]:
        ticket_id = await store(str(arguments["summary"]), idempotency_key=idempotency_key)
        spoken = " ".join(ticket_id)
        return {
            "ticket_id": ticket_id,
            "summary": f"Your ticket is open. Its number is {spoken}. A technician will call you back.",
        }

    return Tool(
        name="open_ticket",
        description="Open a support ticket: a technician, an engineer, looks into the caller's problem.",
        parameters={
            "type": "object",
            "properties": {"summary": {"type": "string", "description": "The caller's problem in one sentence."}},
            "required": ["summary"],
            "additionalProperties": False,
        },
        run=run,
    )
