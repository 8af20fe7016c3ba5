"""The roster of one session: specialists by name, specialists by configuration, and what all of them are told."""

from dataclasses import replace

from graphs.configuration import AgentConfiguration, SpecialistConfiguration
from graphs.http_tools import HTTPAccess, http_tool
from graphs.roster import Roster, Services, Specialist, load_specialist
from graphs.specialists import ROSTER


def configured_roster(configuration: AgentConfiguration, services: Services, *, http_access: HTTPAccess) -> Roster:
    """The specialists that the configuration names, in its order, or all of them. Raises RosterInvalid."""
    chosen = (
        load_specialist(one, services) if isinstance(one, str) else _specialist(one, http_access)
        for one in configuration.specialists or ROSTER
    )
    told = _instructions(configuration)
    return Roster(replace(one, instructions="\n\n".join([one.instructions, *told])) for one in chosen)


def _specialist(configuration: SpecialistConfiguration, http_access: HTTPAccess) -> Specialist:
    return Specialist(
        name=configuration.name,
        title=configuration.title,
        description=configuration.description,
        instructions=configuration.instructions,
        tools=tuple(http_tool(tool, http_access) for tool in configuration.tools),
        bridge=configuration.bridge,
        sources=configuration.sources,
    )


def _instructions(configuration: AgentConfiguration) -> list[str]:
    language = configuration.language
    spoken_in = [f"Speak with the caller in the language {language!r}, whatever language is written here."]
    return [*(spoken_in if language else []), *([configuration.instructions] if configuration.instructions else [])]
