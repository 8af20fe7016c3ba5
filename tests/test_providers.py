"""The stand-in provider server, asked by the genuine SDKs and voice plugins."""

import asyncio
import base64
import io
import itertools
import json
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import pytest
from elevenlabs import ElevenLabs
from livekit import rtc
from livekit.agents import APIError, utils
from livekit.agents.types import USERDATA_TIMED_TRANSCRIPT, APIConnectOptions
from livekit.plugins import elevenlabs as livekit_elevenlabs
from livekit.plugins import openai as livekit_openai
from numpy.typing import NDArray
from openai import APITimeoutError, AsyncOpenAI, BadRequestError, InternalServerError, NotFoundError

from graphs.entities import PassagesMissed, TextDelta
from graphs.knowledge.documents import chunks
from graphs.knowledge.embeddings import OpenAIEmbedder
from graphs.knowledge.index import edit_index
from graphs.knowledge.reading import read_document
from graphs.knowledge.search import HybridSearch
from graphs.retrieval import Retrieval
from graphs.roster import Specialist
from graphs.supervisor import SpecialistAgent
from local.paths import ROOT
from tests.provider_server import ProviderServer, assert_heard
from tests.scripted_llm import ScriptedLLM, says, take

KNOWLEDGE = ROOT / "graphs" / "knowledge" / "demo"

SENTENCE = "Please tell me about the free trial, and how much does it cost?"
TRANSFER: Any = {
    "type": "function",
    "function": {
        "name": "transfer_to",
        "description": (
            "Hands the caller over.\nsales: plans, prices, discounts\ntech_support: routers, slow internet, passwords"
        ),
        "parameters": {
            "type": "object",
            "properties": {"specialist": {"type": "string", "enum": ["sales", "tech_support"]}},
            "required": ["specialist"],
        },
    },
}


@pytest.fixture
async def openai(providers: ProviderServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{providers.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def seconds_of(wav: bytes) -> float:
    with wave.open(io.BytesIO(wav)) as file:
        seconds: float = file.getnframes() / file.getframerate()
    return seconds


async def say(client: AsyncOpenAI, text: str, **options: Any) -> bytes:
    speech = await client.audio.speech.create(
        **{"model": "tts-1", "voice": "caller", "response_format": "wav", "input": text} | options
    )
    return speech.content


async def test_what_the_openai_sdk_says_it_also_hears_in_every_format(openai: AsyncOpenAI) -> None:
    recording = ("speech.wav", await say(openai, SENTENCE))
    heard = await openai.audio.transcriptions.create(model="whisper-1", file=recording)
    plain = await openai.audio.transcriptions.create(model="whisper-1", file=recording, response_format="text")
    verbose = await openai.audio.transcriptions.create(
        model="whisper-1", file=recording, response_format="verbose_json"
    )
    assert_heard(heard.text, SENTENCE)
    assert plain.strip() == heard.text == verbose.text
    assert float(verbose.duration) == pytest.approx(seconds_of(recording[1]))
    assert verbose.segments
    assert 0 <= verbose.segments[0].start < verbose.segments[0].end <= float(verbose.duration)


async def test_the_caller_and_a_higher_speed_are_faster_than_the_agent(openai: AsyncOpenAI) -> None:
    agent = len(await say(openai, SENTENCE, voice="agent", response_format="pcm"))
    caller = len(await say(openai, SENTENCE, voice="caller", response_format="pcm"))
    hurried = len(await say(openai, SENTENCE, voice="nobody knows", response_format="pcm", speed=1.5))
    assert hurried < caller < agent


async def test_silence_is_heard_as_no_words(openai: AsyncOpenAI) -> None:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * 16_000))
    silence = ("silence.wav", content.getvalue())
    assert (await openai.audio.transcriptions.create(model="whisper-1", file=silence)).text == ""


async def test_a_chat_streams_a_tool_call_and_its_usage(openai: AsyncOpenAI) -> None:
    stream = await openai.chat.completions.create(
        model="gpt-4.1",
        messages=[
            {"role": "system", "content": "You are front_desk of Northwind Broadband."},
            {"role": "user", "content": "My router keeps dropping the connection."},
        ],
        tools=[TRANSFER],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    calls = [call for choice in choices for call in choice.delta.tool_calls or ()]
    arguments = "".join(call.function.arguments or "" for call in calls if call.function)
    assert calls[0].id
    assert calls[0].function
    assert calls[0].function.name == "transfer_to"
    assert json.loads(arguments) == {"specialist": "tech_support"}
    assert choices[-1].finish_reason == "tool_calls"
    assert chunks[-1].usage
    assert chunks[-1].usage.total_tokens > 0


async def test_a_streamed_answer_comes_word_by_word_and_is_the_whole_one(openai: AsyncOpenAI) -> None:
    messages: Any = [
        {"role": "system", "content": "You are sales of Northwind Broadband."},
        {"role": "user", "content": "Is there a free trial?"},
    ]
    whole = await openai.chat.completions.create(model="gpt-4.1", messages=messages)
    stream = await openai.chat.completions.create(model="gpt-4.1", messages=messages, stream=True)
    deltas = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert whole.choices[0].finish_reason == "stop"
    assert "".join(deltas) == whole.choices[0].message.content
    assert len([delta for delta in deltas if delta]) >= 3


async def test_embeddings_are_those_published_for_the_model(openai: AsyncOpenAI) -> None:
    sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    packed = await openai.embeddings.create(model="any", input=sentences)
    plain = await openai.embeddings.create(model="any", input=sentences[0], encoding_format="float")
    vectors = np.array([entry.embedding for entry in packed.data])
    likeness = vectors @ vectors.T
    assert vectors.shape == (3, 384)
    # https://sbert.net/docs/quickstart.html prints these; the diagonal says that each has length one.
    published = [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]
    assert likeness == pytest.approx(np.array(published), abs=1e-3)
    assert plain.data[0].embedding == pytest.approx(packed.data[0].embedding, abs=1e-5)


async def test_the_models_are_listed(openai: AsyncOpenAI) -> None:
    assert "stand-in" in [model.id async for model in openai.models.list()]


async def test_bad_requests_are_refused_in_the_shape_of_openai(openai: AsyncOpenAI) -> None:
    with pytest.raises(BadRequestError, match="messages"):
        await openai.chat.completions.create(model="gpt-4.1", messages=[])
    with pytest.raises(BadRequestError, match="role"):
        # A message without a role, which the SDK's types rule out.
        await openai.chat.completions.create(model="gpt-4.1", messages=[{"content": "Hello."}])  # type: ignore[list-item]
    with pytest.raises(BadRequestError, match="'pcm' and 'wav'"):
        await say(openai, "Hello.", response_format="mp3")
    with pytest.raises(BadRequestError, match="WAV"):
        await openai.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"not a recording"))
    with pytest.raises(NotFoundError) as caught:
        await openai.get("/nothing/here", cast_to=httpx.Response)
    assert caught.value.code == "unknown_url"


async def test_what_the_elevenlabs_plugin_says_the_openai_plugin_hears(
    providers: ProviderServer, openai: AsyncOpenAI
) -> None:
    async with utils.http_context.open():
        voice = elevenlabs_voice(providers)
        ear = livekit_openai.STT(client=openai, model="gpt-4o-mini-transcribe")
        async with voice.stream() as stream:
            stream.push_text(SENTENCE)
            stream.end_input()
            frames = [event.frame async for event in stream]
        heard = await ear.recognize(frames)
        await voice.aclose()
        await ear.aclose()
    assert_heard(heard.alternatives[0].text, SENTENCE)
    spoken = [word for frame in frames for word in frame.userdata.get(USERDATA_TIMED_TRANSCRIPT, ())]
    starts = [word.start_time for word in spoken]
    assert "".join(spoken).strip() == SENTENCE
    assert starts == sorted(starts)
    assert starts[-1] < rtc.combine_audio_frames(frames).duration


def elevenlabs_voice(providers: ProviderServer) -> livekit_elevenlabs.TTS:
    return livekit_elevenlabs.TTS(
        voice_id="caller", base_url=f"{providers.url}/v1", api_key="any", encoding="pcm_24000"
    )


class Socket:
    """A multi-context socket driven by hand, for what a plugin does not show."""

    def __init__(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def open(cls, providers: ProviderServer) -> AsyncIterator["Socket"]:
        url = f"{providers.url}/v1/text-to-speech/agent/multi-stream-input?output_format=pcm_16000"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as connection:
            yield cls(connection)

    async def send(self, **message: object) -> None:
        await self._connection.send_json(message)

    async def speak(self, context: str, text: str) -> None:
        await self.send(context_id=context, text=" ")
        await self.send(context_id=context, text=text, flush=True)

    async def end(self, context: str) -> None:
        await self.send(context_id=context, text="", flush=True)
        await self.send(context_id=context, close_context=True)

    async def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = await self._connection.receive_json(timeout=10)
        return message

    async def is_closed_by_server(self) -> bool:
        return (await self._connection.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE

    async def receive_until_final(self, contexts: int = 1) -> list[dict[str, Any]]:
        messages = []
        while contexts:
            messages.append(await self.receive())
            contexts -= bool(messages[-1].get("isFinal"))
        return messages


def samples_of(messages: list[dict[str, Any]]) -> NDArray[np.int16]:
    """What the messages carry, at 16,000 samples per second."""
    audio = b"".join(base64.b64decode(message.get("audio", "")) for message in messages)
    return np.frombuffer(audio, "<i2")


async def test_the_first_clause_is_sent_before_the_rest_and_every_character_has_its_time(
    providers: ProviderServer,
) -> None:
    text = "The pro plan is our most popular, and it is made for working at home. Shall I go on? "
    async with Socket.open(providers) as socket:
        await socket.speak("one", text)
        await socket.end("one")
        messages = await socket.receive_until_final()
    alignments = [message["alignment"] for message in messages if "alignment" in message]
    parts = ["".join(alignment["chars"]) for alignment in alignments]
    starts = [start for alignment in alignments for start in alignment["charStartTimesMs"]]
    lengths = [length for alignment in alignments for length in alignment["charDurationsMs"]]
    assert parts[0] == "The pro plan is our most popular, "
    assert "".join(parts) == text
    assert len(starts) == len(lengths) == len(text)
    assert all(earlier <= later for earlier, later in itertools.pairwise(starts))
    assert starts[-1] + lengths[-1] == pytest.approx(len(samples_of(messages)) / 16, abs=2)
    assert [message for message in messages if message.get("normalizedAlignment") != message.get("alignment")] == []


async def test_the_times_of_characters_follow_the_voice_into_its_pauses(providers: ProviderServer) -> None:
    async with Socket.open(providers) as socket:
        await socket.speak("one", "Well. I came home, opened the door, saw nobody, and left again. ")
        await socket.end("one")
        messages = await socket.receive_until_final()
    loudness = np.abs(samples_of(messages).astype(float))
    pauses: list[float] = []
    speech: list[float] = []
    for alignment in (message["alignment"] for message in messages if "alignment" in message):
        for character, start, length in zip(*alignment.values(), strict=True):
            kind = pauses if character == "," else speech
            kind.extend(loudness[16 * start : 16 * (start + length)])
    assert np.mean(pauses) < np.mean(speech) / 10


async def test_a_closed_context_speaks_what_was_flushed_or_left_unflushed(providers: ProviderServer) -> None:
    async with Socket.open(providers) as socket:
        await socket.speak("flushed", "This was flushed. ")
        await socket.end("flushed")
        await socket.send(context_id="unflushed", text="This was not. ")
        await socket.send(context_id="unflushed", close_context=True)
        messages = await socket.receive_until_final(contexts=2)
    spoken = {message["contextId"] for message in messages if message.get("audio")}
    assert spoken == {"flushed", "unflushed"}


async def test_an_interrupted_context_is_not_synthesised_to_its_end(providers: ProviderServer) -> None:
    text = " ".join(f"This is sentence {number} of a very long story." for number in range(20))
    async with Socket.open(providers) as socket:
        await socket.speak("story", text)
        await socket.receive()
        await socket.send(context_id="story", close_context=True)
        await socket.receive_until_final()
        await socket.speak("next", "Of course. ")
        await socket.end("next")
        assert {message["contextId"] for message in await socket.receive_until_final()} == {"next"}
    interrupted = next(entry for entry in providers.requests("tts") if entry["text"] == text)
    assert interrupted["outcome"] == "cut"
    assert 0 < interrupted["audio"] < 20


async def test_a_plugin_that_stops_in_the_middle_interrupts_the_synthesis(providers: ProviderServer) -> None:
    async with utils.http_context.open():
        voice = elevenlabs_voice(providers)
        stream = voice.stream()
        stream.push_text("Nobody will ever hear this, because it goes on. " * 12)
        stream.flush()
        stream.push_text("And on.")
        await anext(aiter(stream))
        await stream.aclose()
        # What this context asks for is spoken by the same thread, after what is left of the other.
        async with voice.stream() as following:
            following.push_text("Yes?")
            following.end_input()
            assert [event async for event in following]
        await voice.aclose()
    begun = [entry for entry in providers.requests("tts") if entry["text"].startswith("Nobody will ever")]
    assert begun
    assert len(begun) < 12


async def test_the_elevenlabs_sdk_speaks_hears_and_lists_voices(providers: ProviderServer) -> None:
    def converse() -> tuple[bytes, bytes, str, set[str]]:
        with httpx.Client() as connection:
            client = ElevenLabs(api_key="any", base_url=providers.url, httpx_client=connection)
            speech, wanted = client.text_to_speech, "pcm_16000"
            whole = b"".join(speech.convert("agent", text=SENTENCE, output_format=wanted))
            streamed = b"".join(speech.stream("agent", text="Hello.", output_format=wanted))
            heard: Any = client.speech_to_text.convert(model_id="scribe_v1", file=whole, file_format="pcm_s16le_16")
            voices = {voice.voice_id for voice in client.voices.get_all().voices}
        return whole, streamed, heard.text, voices

    whole, streamed, heard, voices = await asyncio.to_thread(converse)
    assert_heard(heard, SENTENCE)
    assert len(streamed) < len(whole)
    assert voices == {"agent", "caller"}


async def test_a_compressed_format_is_refused_in_the_shape_of_elevenlabs(providers: ProviderServer) -> None:
    async with httpx.AsyncClient(base_url=providers.url) as client:
        answer = await client.post("/v1/text-to-speech/agent", json={"text": "Hello."})
    assert answer.status_code == 400
    assert answer.json()["detail"]["status"] == "unsupported_format"


async def test_each_kind_can_be_made_to_fail(providers: ProviderServer, openai: AsyncOpenAI) -> None:
    async with providers.fault(llm="fail", stt="fail"):
        with pytest.raises(InternalServerError):
            await openai.chat.completions.create(model="gpt-4.1", messages=[{"role": "user", "content": "Hello."}])
        with pytest.raises(InternalServerError):
            await openai.audio.transcriptions.create(model="whisper-1", file=("a.wav", await say(openai, "Hello.")))
    assert (await openai.embeddings.create(model="any", input="Hello.")).data


async def test_a_failing_voice_fails_the_plugin_and_closes_its_socket(providers: ProviderServer) -> None:
    async with providers.fault(tts="fail"), Socket.open(providers) as socket:
        await socket.speak("one", "Hello. ")
        error = await socket.receive()
        assert error["contextId"] == "one"
        assert error["error"]
        assert await socket.is_closed_by_server()
    async with providers.fault(tts="fail"), utils.http_context.open():
        voice = elevenlabs_voice(providers)
        async with voice.stream(conn_options=APIConnectOptions(max_retry=0)) as stream:
            stream.push_text("Hello.")
            stream.end_input()
            with pytest.raises(APIError):
                await anext(aiter(stream))
        await voice.aclose()


async def test_a_hanging_provider_never_answers(providers: ProviderServer, openai: AsyncOpenAI) -> None:
    async with providers.fault(embedding="hang"):
        with pytest.raises(APITimeoutError):
            await openai.with_options(timeout=0.5).embeddings.create(model="any", input="Hello.")


@pytest.fixture
async def hybrid(providers: ProviderServer, tmp_path: Path) -> AsyncIterator[HybridSearch]:
    """The handbook of the front desk, with vectors from the stand-in."""
    path = tmp_path / "knowledge.db"
    embedder = OpenAIEmbedder(AsyncOpenAI(base_url=f"{providers.url}/v1", api_key="any"), model="stand-in-embedding")
    with edit_index(path) as editor:
        editor.put("front_desk.md", list(chunks(read_document(KNOWLEDGE / "front_desk.md"))))
        assert await editor.embed(embedder) == 15
    # Patient: how fast the stand-in is on a busy machine is not what these tests are about.
    search = HybridSearch(path, embedder=embedder, patience=30)
    yield search
    await search.aclose()


async def test_documents_are_found_by_meaning(hybrid: HybridSearch) -> None:
    found = await hybrid.search("Where may I leave my vehicle?", k=2)
    assert found[0].title.endswith("Parking your car")


async def test_when_the_embeddings_fail_words_find_the_documents(
    providers: ProviderServer, hybrid: HybridSearch
) -> None:
    async with providers.fault(embedding="fail"):
        assert not await hybrid.search("Where may I leave my vehicle?", k=2)
        (found, *_) = await hybrid.search("Is there parking for my vehicle?", k=2)
    assert found.title.endswith("Parking your car")


async def test_a_turn_goes_on_without_passages_when_the_embeddings_are_slow(
    providers: ProviderServer, hybrid: HybridSearch
) -> None:
    clerk = Specialist(name="clerk", title="Clerk", description="all", instructions="Answer.")
    llm = ScriptedLLM(says("I do not know."), says("Behind the building."))
    agent = SpecialistAgent(clerk, llm=llm, slots={}, retrieval=Retrieval(hybrid, budget=0.15))
    async with providers.fault(embedding="hang"):
        events = await take(agent, "Is there parking?")
    assert events == [PassagesMissed("too_slow"), TextDelta("I do not know.", "clerk")]
    assert "<passages>" not in llm.requests[0].system


async def test_embeddings_that_are_slow_cost_the_meaning_and_not_the_words(
    providers: ProviderServer, hybrid: HybridSearch, tmp_path: Path
) -> None:
    client = AsyncOpenAI(base_url=f"{providers.url}/v1", api_key="any", max_retries=0)
    embedder = OpenAIEmbedder(client, model="stand-in-embedding")
    impatient = HybridSearch(tmp_path / "knowledge.db", embedder=embedder, patience=0.05)
    async with providers.fault(embedding="hang"):
        assert (await impatient.search("Is there parking?", k=1))[0].title.endswith("Parking your car")
    await impatient.aclose()


async def test_an_unknown_fault_is_refused(providers: ProviderServer) -> None:
    async with httpx.AsyncClient(base_url=providers.url) as client:
        assert (await client.post("/faults", json={"video": "fail"})).status_code == 400
        kinds = ("stt", "tts", "llm", "embedding", "openai_stt", "openai_tts", "elevenlabs_stt", "elevenlabs_tts")
        assert (await client.get("/faults")).json() == dict.fromkeys(kinds, "ok")


async def test_every_request_is_noted_with_its_times(providers: ProviderServer, openai: AsyncOpenAI) -> None:
    text = "This sentence is written down once."
    await say(openai, text)
    (entry,) = [entry for entry in providers.requests("tts") if entry["text"] == text]
    assert entry["outcome"] == "done"
    assert 0 < entry["first"] <= entry["wall"] < entry["audio"]
