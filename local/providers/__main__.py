"""The command `python -m local.providers`: loads the models and serves both providers on one port."""

import argparse
import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiohttp import web

from graphs.knowledge.catalogue import DEMO

# Each of the libraries would start threads of its own, and one would report home.
ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m local.providers", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--knowledge", type=Path, default=DEMO, help="folder the answers come from")
    parser.add_argument("--log", type=Path, help="file for one JSON line a request, with its text")
    parser.add_argument("--no-speech", action="store_true", help="neither recognition nor voice; starts faster")
    parser.add_argument("--marked", action="store_true", help="marked words instead of speech, and an echo for a model")
    parser.add_argument("--first-token-delay", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--token-interval", type=float, default=0.005, metavar="SECONDS")
    return parser.parse_args()


def load_app(arguments: argparse.Namespace) -> web.Application:
    """Loads the models, which takes seconds, and uses each once so that no caller waits for that."""
    # Imported here because the libraries read their environment when they are loaded.
    from local.providers.audio import read_pcm
    from local.providers.embeddings import SentenceEmbedder
    from local.providers.journal import Journal
    from local.providers.marked import Echo, MarkRecogniser, MarkVoice
    from local.providers.models import Recognises, Responds, Speaks
    from local.providers.recognition import Recogniser
    from local.providers.responder import Responder
    from local.providers.server import create_app
    from local.providers.voice import Voice
    from local.stand_ins import RECOGNITION, VOICE

    def load_speech() -> tuple[Recognises | None, Speaks | None]:
        if arguments.no_speech:
            return None, None
        if arguments.marked:
            return MarkRecogniser(), MarkVoice(Voice)
        recogniser = Recogniser() if RECOGNITION.is_installed() else None
        voice = Voice() if VOICE.is_installed() else None
        for piece in voice.synthesize("Ready.", rate=16_000) if voice else ():
            if recogniser:
                recogniser.transcribe(read_pcm(piece.pcm, rate=piece.rate))
        return recogniser, voice

    with ThreadPoolExecutor(max_workers=1) as pool:
        speech = pool.submit(load_speech)
        embedder = SentenceEmbedder()
        responder: Responds = (
            Echo() if arguments.marked else Responder(knowledge=arguments.knowledge, embed=embedder.embed)
        )
        recogniser, voice = speech.result()
    return create_app(
        recogniser=recogniser,
        voice=voice,
        embedder=embedder,
        responder=responder,
        journal=Journal.at(arguments.log),
        first_token_delay=arguments.first_token_delay,
        token_interval=arguments.token_interval,
    )


def main() -> None:
    arguments = parse_arguments()
    os.environ.update(ENVIRONMENT)
    from local.providers.server import serve

    asyncio.run(serve(load_app(arguments), port=arguments.port))


if __name__ == "__main__":
    main()
