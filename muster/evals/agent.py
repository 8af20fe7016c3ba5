"""The agent of a text eval as the settings want it: model, company and documents as a worker has them."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from pydantic import Field

from graphs.knowledge.catalogue import load_catalogue
from graphs.llm.openai import OpenAILLM
from muster.evals.text import TextRunner
from worker.call.knowledge import open_search
from worker.call.settings import OPENAI_URL, CallSettings, KnowledgeSettings

#: Seconds for a part of an answer: nobody waits on the phone, and slow models are evaluated, too.
_PATIENCE = 60.0

_CALL = CallSettings.model_fields


class EvalSettings(KnowledgeSettings):
    """Those settings of a call that matter without a phone."""

    llm_model: str = Field(default=_CALL["llm_model"].default, alias="MUSTER_LLM_MODEL")
    knowledge: Path | None = Field(default=None, alias="MUSTER_KNOWLEDGE")


def open_runner(environ: Mapping[str, str], stack: AsyncExitStack, *, through_proxies: bool = True) -> TextRunner:
    """A runner on the model of the settings; `stack` closes what it opens.

    `through_proxies` heeds those of the environment, which lead nowhere from a server of this machine.
    Raises SettingsInvalid, CatalogueInvalid and KnowledgeUnavailable.
    """
    settings = EvalSettings.from_env(environ)
    client = AsyncOpenAI(
        # The SDK wants one; servers of one's own often do not.
        api_key=settings.openai_api_key or "not-needed",
        base_url=settings.openai_base_url or OPENAI_URL,
        max_retries=0,
        http_client=DefaultAsyncHttpxClient(trust_env=through_proxies),
    )
    stack.push_async_callback(client.close)
    index = settings.knowledge_index
    return TextRunner(
        llm=OpenAILLM(client, model=settings.llm_model, timeout=_PATIENCE),
        catalogue=load_catalogue(settings.knowledge) if settings.knowledge else None,
        open_search=(lambda: open_search(settings, index)) if index else None,
        budget=settings.retrieval_budget,
    )
