"""The chat model of a call and its router, as the settings want them; both on one client."""

from openai import AsyncOpenAI

from graphs.llm.fallback import FallbackLLM
from graphs.llm.openai import OpenAILLM
from graphs.ports import LLMPort
from graphs.router import AgentRouterPort, SpeculativeRouter, sticky
from worker.call.settings import AgentSettings


def open_model(client: AsyncOpenAI, settings: AgentSettings, *, temperature: float | None = None) -> LLMPort:
    """The model that speaks, with the one that stands in for it when there is one."""
    model = _model(client, settings, settings.llm_model, temperature=temperature)
    if settings.llm_fallback_model is None:
        return model
    return FallbackLLM(model, _model(client, settings, settings.llm_fallback_model, temperature=temperature))


def open_router(client: AsyncOpenAI, settings: AgentSettings) -> AgentRouterPort:
    """Who decides which specialist answers a turn."""
    if settings.router == "sticky":
        return sticky
    return SpeculativeRouter(_model(client, settings, settings.router_model or settings.llm_model))


def _model(client: AsyncOpenAI, settings: AgentSettings, name: str, *, temperature: float | None = None) -> OpenAILLM:
    return OpenAILLM(client, model=name, timeout=settings.provider_timeout, temperature=temperature)
