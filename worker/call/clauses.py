"""Cutting an answer for the voice: its first clause at once, then sentence by sentence."""

import asyncio
import re

from livekit.agents.tokenize import SentenceStream, SentenceTokenizer, TokenData, blingfire

#: A comma, colon or dash behind this many characters ends the first clause: long enough not to sound torn off, and to
#: last until the next sentence is spoken. A sentence's end before it leaves nothing to cut.
_CLAUSE = re.compile(
    r"(?P<clause>(?:(?![.!?][\"')\]]*\s).){18,}?(?:[,;:]|\s[-\N{EN DASH}\N{EM DASH}]|\N{EM DASH}))\s", re.DOTALL
)
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s")
#: How a text ends when its writer stops after a sentence. LiveKit takes Markdown out of a text before it is spoken, and
#: keeps the white space that follows a full stop until more is written; behind a figure, the figure may go on.
_COMPLETE = re.compile(r"(?:[!?]|(?<!\d)\.)[\"')\]]*\s*$")


class ClauseTokenizer(SentenceTokenizer):
    """LiveKit's own sentence tokenizer, but a streamed text's first token may be a clause, and a sentence at the
    end of what is written so far does not wait for the next one.

    Nothing is lost or added: the tokens, joined by spaces, are the text with its white space evened out.
    """

    def __init__(self) -> None:
        self._sentences = blingfire.SentenceTokenizer()

    def tokenize(self, text: str, *, language: str | None = None) -> list[str]:
        """The sentences of a whole text, which gains nothing from a clause."""
        return self._sentences.tokenize(text, language=language)

    def stream(self, *, language: str | None = None) -> SentenceStream:
        """Tokens of one answer while it is written."""
        return _ClauseStream(self._sentences, self._sentences.stream(language=language))


class _ClauseStream(SentenceStream):
    def __init__(self, tokenizer: SentenceTokenizer, sentences: SentenceStream) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._sentences = sentences
        #: The text as long as it is not known whether its first token is a clause.
        self._opening = ""
        self._is_open = asyncio.Event()
        self._clause: str | None = None
        #: What the sentences were given and may still keep.
        self._kept = ""

    def push_text(self, text: str) -> None:
        if self._is_open.is_set():
            self._pass_on(text)
            return
        self._opening += text
        if found := _CLAUSE.match(self._opening):
            self._clause = found["clause"].strip()
            self._pass_on(self._opening[found.end() :])
        elif _SENTENCE_END.search(self._opening) or self._is_complete(self._opening):
            self._pass_on(self._opening)

    def flush(self) -> None:
        self._pass_on(self._opening)
        self._sentences.flush()

    def end_input(self) -> None:
        self._pass_on(self._opening)
        self._sentences.end_input()

    async def aclose(self) -> None:
        self._is_open.set()
        await self._sentences.aclose()

    async def __anext__(self) -> TokenData:
        await self._is_open.wait()
        if self._clause is not None:
            clause, self._clause = self._clause, None
            return TokenData(token=clause)
        return await self._sentences.__anext__()

    @property
    def closed(self) -> bool:
        return self._sentences.closed

    def _pass_on(self, text: str) -> None:
        self._opening = ""
        self._is_open.set()
        if not text:
            return
        self._sentences.push_text(text)
        self._kept += text
        if self._is_complete(self._kept):
            self._sentences.flush()
            self._kept = ""

    def _is_complete(self, text: str) -> bool:
        """Whether a word behind the text would begin another sentence, and the last one is long enough to be spoken."""
        return bool(_COMPLETE.search(text)) and self._tokenizer.tokenize(f"{text.rstrip()} Next")[-1] == "Next"
