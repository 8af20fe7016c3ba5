"""One aiohttp application with both providers' interfaces, its errors and its fault switches.

`POST /faults` with `{"stt"|"tts"|"llm"|"embedding": "ok"|"fail"|"hang"}` changes what requests of that kind do
from then on: answer, fail with status 500, or stay silent for a minute and then fail. `openai_stt`, `openai_tts`,
`elevenlabs_stt` and `elevenlabs_tts` are one provider's alone. A failing socket of ElevenLabs sends an error for its
context and closes. `GET /faults` tells.
"""

import asyncio
import signal

from aiohttp import web
from aiohttp.typedefs import Handler

from local.providers.elevenlabs_api import ElevenLabsInterface
from local.providers.embeddings import SentenceEmbedder
from local.providers.errors import MethodNotAllowed, ProviderError, UnknownPath
from local.providers.exchange import parse
from local.providers.faults import Faults, FaultSettings
from local.providers.journal import Journal
from local.providers.models import Models, Recognises, Responds, Speaks
from local.providers.openai_api import OpenAIInterface

#: Bytes.
LARGEST_UPLOAD = 64 * 1024 * 1024
SHUTDOWN_SECONDS = 0.5
ELEVENLABS_PATHS = ("/v1/text-to-speech", "/v1/speech-to-text", "/v1/voices")


def create_app(
    *,
    recogniser: Recognises | None,
    voice: Speaks | None,
    embedder: SentenceEmbedder,
    responder: Responds,
    journal: Journal | None = None,
    first_token_delay: float = 0.0,
    token_interval: float = 0.005,
) -> web.Application:
    """The application; both delays are seconds and imitate a remote language model."""
    models = Models(recogniser=recogniser, voice=voice, embedder=embedder, responder=responder)
    faults = Faults()
    journal = journal or Journal()
    openai = OpenAIInterface(
        models=models,
        faults=faults,
        journal=journal,
        first_token_delay=first_token_delay,
        token_interval=token_interval,
    )
    elevenlabs = ElevenLabsInterface(models=models, faults=faults, journal=journal)
    app = web.Application(client_max_size=LARGEST_UPLOAD, middlewares=[answer_errors])
    app.add_routes([*openai.routes(), *elevenlabs.routes(), *control_routes(faults)])

    async def close(_: web.Application) -> None:
        models.close()
        journal.close()

    app.on_cleanup.append(close)
    return app


def control_routes(faults: Faults) -> list[web.RouteDef]:
    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def tell_faults(_: web.Request) -> web.Response:
        return web.json_response(faults.settings.model_dump())

    async def change_faults(request: web.Request) -> web.Response:
        faults.change(parse(await request.read(), FaultSettings))
        return await tell_faults(request)

    return [
        web.get("/health", health),
        web.get("/faults", tell_faults),
        web.post("/faults", change_faults),
    ]


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors in the shape of the provider whose path was asked for."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        error: ProviderError = UnknownPath(f"Unknown request URL: {request.method} {request.path}")
    except web.HTTPMethodNotAllowed:
        error = MethodNotAllowed()
    except ProviderError as refused:
        error = refused
    if request.path.startswith(ELEVENLABS_PATHS):
        return web.json_response(elevenlabs_error(error), status=error.status)
    return web.json_response(openai_error(error), status=error.status)


def openai_error(error: ProviderError) -> dict[str, object]:
    kind = "server_error" if error.status >= web.HTTPInternalServerError.status_code else "invalid_request_error"
    return {"error": {"message": str(error), "type": kind, "param": None, "code": error.code}}


def elevenlabs_error(error: ProviderError) -> dict[str, object]:
    return {"detail": {"status": error.code, "message": str(error)}}


async def serve(app: web.Application, *, port: int) -> None:
    """Serves on 127.0.0.1 until SIGTERM or SIGINT; prints "ready PORT" when requests are answered."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    # A client that hangs up stops the work done for it.
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=SHUTDOWN_SECONDS, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print("ready", runner.addresses[0][1], flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()
