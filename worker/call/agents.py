"""The agent of a session: the team, the model and the tools that its configuration and the settings say."""

from typing import TypeVar

from openai import AsyncOpenAI

from graphs import entities
from graphs.configuration import AgentConfiguration
from graphs.http_tools import HTTPAccess
from graphs.knowledge.catalogue import load_catalogue
from graphs.ports import OpenTicketPort
from graphs.retrieval import Retrieval
from graphs.supervisor import OnExchange, SupervisorAgent, build_supervisor
from worker.call.models import open_model, open_router
from worker.call.settings import AgentSettings, tool_secrets
from worker.fleet.session import Session
from worker.fleet.tool_hosts import may_call

Settings = TypeVar("Settings", bound=AgentSettings)


def settings_of(session: Session, settings: Settings) -> Settings:
    """The worker's settings with what the session's configuration sets of them; raises ConfigurationInvalid."""
    return settings.with_configuration(AgentConfiguration.of(session.configuration))


def open_agent(
    session: Session,
    begun: entities.Session,
    settings: AgentSettings,
    *,
    client: AsyncOpenAI,
    open_ticket: OpenTicketPort,
    retrieval: Retrieval | None = None,
    on_exchange: OnExchange | None = None,
) -> SupervisorAgent:
    """The agent, which goes on from what has `begun`; `settings` are those of `settings_of`, `client` the chat model's.

    Raises ConfigurationInvalid, RosterInvalid and CatalogueInvalid.
    """
    configuration = AgentConfiguration.of(session.configuration)
    return build_supervisor(
        llm=open_model(client, settings, temperature=configuration.temperature),
        router=open_router(client, settings),
        open_ticket=open_ticket,
        slots=begun.slots,
        history=begun.messages,
        active=begun.active or None,
        configuration=configuration,
        http_access=HTTPAccess(may_call=lambda url: may_call(url, settings.tool_hosts), secrets=tool_secrets()),
        catalogue=load_catalogue(settings.knowledge) if settings.knowledge else None,
        retrieval=retrieval,
        on_exchange=on_exchange,
    )
