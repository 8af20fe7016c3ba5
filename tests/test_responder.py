"""The stand-in's small model: it routes, uses tools and answers, whatever the recogniser made of a sentence."""

import json
import os
import re
import zlib
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from graphs.entities import LLMEvent, Message, PassageRecord, Token, ToolCallStarted, ToolSchema, Transferred
from graphs.entities import ToolCall as RequestedCall
from graphs.knowledge.catalogue import DEMO, load_catalogue
from graphs.prompt import passages_prompt, system_prompt
from graphs.roster import Roster, Services, load_roster
from graphs.router import SpeculativeRouter, StickyRouter
from graphs.specialists import ROSTER
from graphs.supervisor import build_supervisor
from graphs.tickets import SQLiteTickets
from local.providers.intents import AUTOMATED, GOODBYE, HELLO, TAKE_YOUR_TIME
from local.providers.passages import MAX_ANSWER_WORDS, read_sections
from local.providers.responder import ASK_AGAIN, NOT_ABLE, NOT_MINE, NOT_TOLD, Answer, Responder
from tests.scripted_llm import spoken, take

ROUTING = [
    ("front_desk", "At what time do you close on weekdays?"),
    ("front_desk", "uh could you tell me how i find you"),
    ("front_desk", "is there somewhere i can leave my car"),
    ("front_desk", "I have not received a bill this month"),
    ("front_desk", "oh what are you're opening ours"),
    ("front_desk", "are you guys looking for people to hire"),
    ("front_desk", "I'd like to complain about your service"),
    ("front_desk", "what happens if i pay too late"),
    ("front_desk", "Hello, good morning."),
    ("front_desk", "who won the football match"),
    ("sales", "What would the family plan cost me?"),
    ("sales", "What does the premium plane cost?"),
    ("sales", "the do students get a discount"),
    ("sales", "What plans do you have"),
    ("sales", "can I try it for free first"),
    ("sales", "How much for the business plane"),
    ("sales", "I need an offer for my company"),
    ("sales", "can i switch to a bigger plan"),
    ("sales", "Can you tell me the prize of the premium plan?"),
    ("sales", "i'm interested in buying fast internet for my house"),
    ("tech_support", "my internet is down"),
    ("tech_support", "My rooter does not work."),
    ("tech_support", "in my router keeps restarting"),
    ("tech_support", "red light on the root her"),
    ("tech_support", "I can't remember my password"),
    ("tech_support", "your app keeps crashing"),
    ("tech_support", "what does error thirty mean"),
    ("tech_support", "downloads are really really slow"),
    ("tech_support", "the wireless doesn't reach the bedroom"),
    ("tech_support", "I would like to open a ticket"),
]
OFFER = "If that does not help, I can open a ticket."


def bag_of_words(texts: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors that are close when texts share words."""
    vectors = np.full((len(texts), 512), 1e-6, np.float32)
    for row, text in zip(vectors, texts, strict=True):
        for word in re.findall(r"[a-z]+", text.lower()):
            row[zlib.crc32(word.encode()) % 512] += 1
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def responder() -> Responder:
    return Responder(knowledge=DEMO, embed=bag_of_words)


@pytest.fixture(scope="module")
def fluent() -> Responder:
    """With the embeddings that the stand-in uses."""
    try:
        from local.providers.embeddings import SentenceEmbedder

        return Responder(knowledge=DEMO, embed=SentenceEmbedder().embed)
    except ModuleNotFoundError:
        if os.environ.get("CI"):
            raise
        pytest.skip("the sentence embeddings are not installed")


@pytest.fixture(scope="module")
def roster(tmp_path_factory: pytest.TempPathFactory) -> Roster:
    tickets = SQLiteTickets(tmp_path_factory.mktemp("tickets") / "tickets.db")
    return load_roster(ROSTER, Services(catalogue=load_catalogue(), open_ticket=tickets))


Ask = Callable[..., Answer]


def wire_tool(tool: ToolSchema) -> dict[str, object]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def wire_message(message: Message) -> dict[str, object]:
    calls = [{"function": {"name": call.name, "arguments": call.arguments}} for call in message.tool_calls]
    return {"role": message.role, "content": message.content or None, "tool_calls": calls or None}


def ask(model: Responder, roster: Roster, desk: str, *turns: str, since: Sequence[Message] = ()) -> Answer:
    """What the model does when `turns`, the caller's and the agent's in turn, were said to `desk`."""
    specialist = roster[desk]
    transfer = roster.transfer_schema(desk)
    tools = [*([transfer] if transfer else []), *(tool.schema for tool in specialist.tools)]
    messages = [Message(id="system", role="system", content=system_prompt(specialist, {}))]
    for number, text in enumerate(turns):
        messages.append(Message(id=str(number), role="assistant" if number % 2 else "user", content=text))
    return model.answer([*map(wire_message, (*messages, *since))], [*map(wire_tool, tools)])


def called(name: str, result: object) -> list[Message]:
    """The messages of a tool call that was made since the caller spoke."""
    call = RequestedCall("c1", name, "{}")
    return [
        Message(id="c", role="assistant", tool_calls=(call,)),
        Message(id="r", role="tool", content=json.dumps(result), tool_call_id="c1"),
    ]


def only_call(answer: Answer) -> tuple[str, dict[str, object]]:
    (call,) = answer.tool_calls
    return call.name, call.arguments


def test_varied_and_misheard_sentences_reach_the_right_desk(fluent: Responder, roster: Roster) -> None:
    wrong = []
    for desk, sentence in ROUTING:
        answer = ask(fluent, roster, "front_desk", sentence)
        reached = only_call(answer)[1]["specialist"] if answer.tool_calls else "front_desk"
        if reached != desk:
            wrong.append((sentence, reached))
    assert len(wrong) <= 2, wrong


def test_the_same_question_gets_the_same_answer(responder: Responder, roster: Roster) -> None:
    answers = {ask(responder, roster, "front_desk", "What are your opening hours?") for _ in range(3)}
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("What are your opening hours?", "nine to six"),
        ("are you open on saturday", "nine to one"),
        ("Where is your office?", "Harbour Street"),
        ("what's your address", "Harbour Street"),
        ("where can i find parking", "free parking"),
    ],
)
def test_a_question_for_the_own_desk_is_answered_from_its_file(
    fluent: Responder, roster: Roster, question: str, words: str
) -> None:
    answer = ask(fluent, roster, "front_desk", question)
    assert words in answer.text and not answer.tool_calls


@pytest.mark.parametrize("page", sorted(DEMO.glob("*.md")), ids=lambda page: page.stem)
def test_every_section_can_be_spoken_briefly_and_starts_soon(page: Path) -> None:
    for section in read_sections(page.stem, page.read_text()):
        if section.sentences:
            assert len(section.speak().split()) <= MAX_ANSWER_WORDS
            assert len(section.sentences[0].split()) <= 14, section


def test_the_list_of_all_plans_is_long_enough_to_interrupt(fluent: Responder, roster: Roster) -> None:
    answer = ask(fluent, roster, "sales", "What plans do you offer?")
    assert len(answer.text.split()) >= 25


@pytest.mark.parametrize(
    ("sentence", "product"),
    [
        ("How much is the premium plan?", "premium plan"),
        ("what does the premium plane cost", "premium plan"),
        ("what's the price of the premium plant", "premium plan"),
        ("how expensive is the mesh booster", "mesh booster"),
        ("oh and how much do i pay for family", "family plan"),
    ],
)
def test_a_price_is_looked_up_even_when_the_product_was_misheard(
    responder: Responder, roster: Roster, sentence: str, product: str
) -> None:
    answer = ask(responder, roster, "sales", sentence)
    assert only_call(answer) == ("look_up_price", {"product": product})


def test_a_price_question_leans_on_what_was_said_before(responder: Responder, roster: Roster) -> None:
    told = "The basic plan is our smallest."
    answer = ask(responder, roster, "sales", "tell me about the basic plan", told, "how much is that")
    assert only_call(answer) == ("look_up_price", {"product": "basic plan"})


@pytest.mark.parametrize(
    ("sentence", "product"),
    [
        ("What would I have to pay each month for your smallest plan?", "basic plan"),
        ("My wife edits films. What is the price of the plan for working at home?", "premium plan"),
        ("Two of us have an office. What does the plan for small offices cost?", "business plan"),
        ("How much do you want for the thing that carries wireless into far rooms?", "mesh booster"),
    ],
)
def test_a_price_is_looked_up_for_a_product_that_is_only_described(
    fluent: Responder, roster: Roster, sentence: str, product: str
) -> None:
    assert only_call(ask(fluent, roster, "front_desk", sentence)) == ("transfer_to", {"specialist": "sales"})
    assert only_call(ask(fluent, roster, "sales", sentence)) == ("look_up_price", {"product": product})


@pytest.mark.parametrize("desk", ["front_desk", "sales", "tech_support"])
@pytest.mark.parametrize(
    "sentence",
    [
        "Can you recommend a good Italian restaurant?",
        "What do you charge for a haircut?",
        "Who won the football match last night?",
        "When does the next bus to the airport leave?",
    ],
)
def test_what_is_nobodys_business_here_is_said_to_be_unknown(
    fluent: Responder, roster: Roster, desk: str, sentence: str
) -> None:
    assert ask(fluent, roster, desk, sentence) == Answer(NOT_MINE)


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("I am home at six on most days. Where can I leave the car when I come?", "Mill Lane"),
        ("I have been very busy. Is there a penalty for paying my bill too late?", "late fee"),
        ("What do you do with my personal details?", "never sell"),
    ],
)
def test_what_is_told_before_the_question_does_not_hide_it(
    fluent: Responder, roster: Roster, sentence: str, words: str
) -> None:
    assert words in ask(fluent, roster, "front_desk", sentence).text


def test_who_wants_a_human_is_told_the_colleagues(fluent: Responder, roster: Roster) -> None:
    wish = "I would rather speak with a human being."
    assert "sales" in ask(fluent, roster, "front_desk", wish).text
    offered = ask(fluent, roster, "tech_support", wish).text
    assert "front desk" in offered and "sales for plans, prices" in offered
    assert only_call(ask(fluent, roster, "tech_support", wish, offered, "Sales, please.")) == (
        "transfer_to",
        {"specialist": "sales"},
    )
    assert ask(fluent, roster, "front_desk", "Are you a robot?") == Answer(AUTOMATED)


def test_what_no_tool_can_do_is_explained_and_not_claimed(fluent: Responder, roster: Roster) -> None:
    answer = ask(fluent, roster, "front_desk", "Cancel my contract, please.")
    assert answer.text.startswith(NOT_ABLE) and "end of the month" in answer.text
    assert NOT_ABLE not in ask(fluent, roster, "front_desk", "How do I cancel my contract?").text


def test_the_number_of_a_ticket_is_told_again_without_another_ticket(fluent: Responder, roster: Roster) -> None:
    summary = "Your ticket is open. Its number is T 4 8 1 5."
    earlier = called("open_ticket", {"ticket_id": "T4815", "summary": summary})
    answer = ask_after(fluent, roster, earlier, "Could you read me my ticket number once more?")
    assert answer == Answer(summary)
    another = ask_after(fluent, roster, earlier, "The television is broken, too. Open another ticket for that.")
    assert [call.name for call in another.tool_calls] == ["open_ticket"]


def ask_after(model: Responder, roster: Roster, earlier: Sequence[Message], question: str) -> Answer:
    """What technical support's model does with a question after an exchange with these messages of a tool's call."""
    desk = roster["tech_support"]
    messages = [
        Message(id="s", role="system", content=system_prompt(desk, {})),
        Message(id="u1", role="user", content="My router keeps restarting, please open a ticket."),
        *earlier,
        Message(id="u2", role="user", content=question),
    ]
    return model.answer([*map(wire_message, messages)], [wire_tool(tool.schema) for tool in desk.tools])


def test_a_name_that_nobody_told_is_not_made_up(fluent: Responder, roster: Roster) -> None:
    assert ask(fluent, roster, "front_desk", "What is my name?") == Answer(NOT_TOLD)


def test_an_unclear_price_question_is_asked_back(responder: Responder, roster: Roster) -> None:
    answer = ask(responder, roster, "sales", "what does it cost")
    assert answer.text.startswith("Which one") and "premium plan" in answer.text


def test_a_tools_summary_is_said(responder: Responder, roster: Roster) -> None:
    since = called("look_up_price", {"price_dollars": 49, "summary": "It costs forty nine dollars."})
    answer = ask(responder, roster, "sales", "how much is the premium plan", since=since)
    assert answer == Answer("It costs forty nine dollars.")


def test_a_tools_error_is_owned_up_to(responder: Responder, roster: Roster) -> None:
    since = called("open_ticket", {"error": "The store is away."})
    answer = ask(responder, roster, "tech_support", "a ticket please", since=since)
    assert "did not work" in answer.text and not answer.tool_calls


@pytest.mark.parametrize(
    "reply", ["Yes, please.", "it did not help", "still the same", "can you open a ticket for that", "a tickets please"]
)
def test_asking_for_a_ticket_or_accepting_one_opens_it_with_the_problem(
    responder: Responder, roster: Roster, reply: str
) -> None:
    problem = "my router keeps restarting since Monday"
    answer = ask(responder, roster, "tech_support", problem, OFFER, reply)
    assert only_call(answer) == ("open_ticket", {"summary": problem})


@pytest.mark.parametrize(
    "words",
    [
        "I do not want a ticket.",
        "no ticket please",
        "How long does a ticket take?",
        "Does the premium plan still not work with seniors?",
        "it works again, thank you",
    ],
)
def test_a_ticket_that_nobody_asked_for_is_not_opened(responder: Responder, roster: Roster, words: str) -> None:
    answer = ask(responder, roster, "tech_support", "my router keeps restarting", OFFER, words)
    assert [call.name for call in answer.tool_calls if call.name == "open_ticket"] == []


@pytest.mark.parametrize(
    "words", ["I unplugged it already, no difference.", "It keeps restarting, it is still the same."]
)
def test_steps_in_vain_open_a_ticket_about_the_fault(responder: Responder, roster: Roster, words: str) -> None:
    told = "Unplug the router for thirty seconds."
    answer = ask(responder, roster, "tech_support", "my router keeps restarting", told, words)
    assert only_call(answer) == ("open_ticket", {"summary": "my router keeps restarting"})


def test_two_prices_are_looked_up_at_once_and_both_said(responder: Responder, roster: Roster) -> None:
    question = "How much are the basic plan and the family plan?"
    asked = ask(responder, roster, "sales", question)
    assert [call.arguments for call in asked.tool_calls] == [{"product": "basic plan"}, {"product": "family plan"}]
    since = [*called("look_up_price", {"summary": "One."}), *called("look_up_price", {"summary": "Two."})]
    assert ask(responder, roster, "sales", question, since=since) == Answer("One. Two.")


def test_a_desk_is_reached_by_its_name(responder: Responder, roster: Roster) -> None:
    answer = ask(responder, roster, "front_desk", "Could you put me through to someone in technical support, please?")
    assert only_call(answer) == ("transfer_to", {"specialist": "tech_support"})
    assert "tech support" in ask(responder, roster, "tech_support", "I want to talk to tech support").text


def test_an_answer_is_repeated_and_one_that_was_cut_off_is_given_anew(fluent: Responder, roster: Roster) -> None:
    question = "What are your opening hours?"
    whole = ask(fluent, roster, "front_desk", question, "We open at nine.", "Could you say that again?")
    assert whole == Answer("We open at nine.")
    anew = ask(fluent, roster, "front_desk", question, "We are open from", "Could you say that again?")
    assert "nine to six" in anew.text


@pytest.mark.parametrize(
    ("question", "words"),
    [("What is my name?", "Ada"), ("Which plan do I have?", "family plan"), ("Hello!", "Hello, Ada!")],
)
def test_what_the_prompt_says_about_the_caller_is_known(
    responder: Responder, roster: Roster, question: str, words: str
) -> None:
    system = system_prompt(roster["front_desk"], {"name": "Ada", "plan": "family plan"})
    messages = [Message(id="s", role="system", content=system), Message(id="u", role="user", content=question)]
    assert words in responder.answer([*map(wire_message, messages)], []).text


def test_a_declined_ticket_is_not_opened(responder: Responder, roster: Roster) -> None:
    assert ask(responder, roster, "tech_support", "my router", OFFER, "no thanks that's all") == Answer(GOODBYE)


def test_after_a_hand_over_the_new_desk_answers_and_sends_nobody_back(responder: Responder, roster: Roster) -> None:
    since = called("transfer_to", {"transferred_to": "sales"})
    assert not ask(responder, roster, "sales", "what are your opening hours", since=since).tool_calls
    assert only_call(ask(responder, roster, "sales", "how much is the premium plan", since=since)) == (
        "look_up_price",
        {"product": "premium plan"},
    )
    assert "sales" in ask(responder, roster, "sales", "please put me through to sales", since=since).text


@pytest.mark.parametrize(
    ("words", "reply"),
    [
        ("Hello, good morning.", HELLO),
        ("sorry, stop please", TAKE_YOUR_TIME),
        ("Oh, wait a moment.", TAKE_YOUR_TIME),
        ("thank you very much, goodbye", GOODBYE),
        ("", ASK_AGAIN),
        ("elephants sing purple songs", ASK_AGAIN),
    ],
)
def test_small_talk_and_nonsense_get_a_polite_reply(
    responder: Responder, roster: Roster, words: str, reply: str
) -> None:
    assert ask(responder, roster, "front_desk", words) == Answer(reply)


def test_a_colleague_without_a_file_is_found_by_their_description(responder: Responder) -> None:
    choices = {"type": "object", "properties": {"specialist": {"type": "string", "enum": ["gardening"]}}}
    tool = ToolSchema("transfer_to", "Hand over to:\ngardening: lawns, roses, hedges", choices)
    messages: list[dict[str, object]] = [
        {"role": "system", "content": "You are the agent front_desk."},
        {"role": "user", "content": [{"type": "text", "text": "my roses and hedges"}]},
    ]
    assert only_call(responder.answer(messages, [wire_tool(tool)])) == (
        "transfer_to",
        {"specialist": "gardening"},
    )


def test_a_desk_without_a_file_uses_its_tools_for_what_is_its_business(fluent: Responder) -> None:
    dish = {"type": "object", "properties": {"dish": {"type": "string", "enum": ["pizza", "soup"]}}}
    table = {"type": "object", "properties": {"wish": {"type": "string"}}}
    tools = [ToolSchema("look_up_price", "What a dish costs.", dish), ToolSchema("book_table", "Book a table.", table)]

    def answer(words: str) -> Answer:
        messages = [{"role": "system", "content": "You are the agent waiter."}, {"role": "user", "content": words}]
        return fluent.answer(messages, [*map(wire_tool, tools)])

    assert only_call(answer("How much is the pizza?")) == ("look_up_price", {"dish": "pizza"})
    assert not answer("What does a bottle of wine cost?").tool_calls
    assert only_call(answer("Please book a table for dinner."))[0] == "book_table"


class RespondingLLM:
    """The responder as an `LLMPort`, without the server between."""

    def __init__(self, model: Responder) -> None:
        self._model = model
        self._calls = 0

    async def __call__(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema]
    ) -> AsyncGenerator[LLMEvent, None]:
        answer = self._model.answer([*map(wire_message, messages)], [*map(wire_tool, tools)])
        if answer.text:
            yield Token(answer.text)
        for call in answer.tool_calls:
            self._calls += 1
            call_id = f"call_{self._calls}"
            yield ToolCallStarted(call_id, call.name)
            yield RequestedCall(call_id, call.name, json.dumps(call.arguments))


@pytest.mark.parametrize("speculative", [False, True], ids=["sticky", "speculative"])
async def test_a_whole_conversation_with_the_supervisor(fluent: Responder, tmp_path: Path, speculative: bool) -> None:
    tickets = SQLiteTickets(tmp_path / "tickets.db")
    router = SpeculativeRouter(RespondingLLM(fluent)) if speculative else StickyRouter()
    agent = build_supervisor(llm=RespondingLLM(fluent), open_ticket=tickets, slots={}, router=router)
    talk = [
        ("What are your opening hours?", "front_desk", "nine to six"),
        ("And what does the premium plane cost?", "sales", "forty nine dollars"),
        ("What plans do you offer?", "sales", "four plans"),
        ("Sorry. Stop, please.", "sales", "take your time"),
        ("a my router keeps restarting.", "tech_support", "Unplug it"),
        ("Please open a ticket for that.", "tech_support", "Your ticket is open"),
        ("Thank you, goodbye.", "tech_support", "Goodbye"),
    ]
    transfers = []
    for number, (question, desk, words) in enumerate(talk):
        events = await take(agent, question, turn_id=f"turn_{number}")
        reply = spoken(events)
        assert words in reply and agent.active == desk, (question, reply)
        agent.commit_assistant(f"turn_{number}", reply, interrupted=False, item_id=f"item_{number}")
        transfers += [event.target for event in events if isinstance(event, Transferred)]
    assert transfers == ["sales", "tech_support"]


NOTICE = (
    "Our shop is being rebuilt. The walls are painted green. New shelves will arrive, and the doors get wider. "
    "Bicycles can be rented at the counter for ten dollars a day. The works last until the end of the summer, and "
    "nobody knows yet whether the old lamps will come back."
)


def ask_with(model: Responder, roster: Roster, question: str, *passages: tuple[str, str]) -> Answer:
    """What the front desk's model does with these passages, heading and text, in its prompt."""
    records: list[PassageRecord] = [
        {"id": f"a.md#{number}", "source": "a.md", "title": f"Shop > {title}", "text": text, "score": 1.0}
        for number, (title, text) in enumerate(passages)
    ]
    desk = roster["front_desk"]
    transfer = roster.transfer_schema("front_desk")
    assert transfer
    system = system_prompt(desk, {}) + ("\n\n" + passages_prompt(records) if records else "")
    messages = [Message(id="s", role="system", content=system), Message(id="u", role="user", content=question)]
    return model.answer([*map(wire_message, messages)], [wire_tool(transfer)])


def test_a_passage_of_the_prompt_is_answered_from(responder: Responder, roster: Roster) -> None:
    question = "Can I rent bicycles at your counter?"
    without = ask_with(responder, roster, question)
    answer = ask_with(responder, roster, question, ("Lamps", "We sell lamps."), ("Rental", "Bicycles are rented here."))
    assert "Bicycles" not in without.text
    assert (answer.text, answer.tool_calls) == ("Bicycles are rented here.", ())


def test_a_long_passage_is_spoken_from_the_sentence_that_answers(responder: Responder, roster: Roster) -> None:
    answer = ask_with(responder, roster, "Can bicycles be rented for a day?", ("Notice", NOTICE))
    assert answer.text.startswith("Bicycles can be rented")
    assert len(answer.text.split()) <= MAX_ANSWER_WORDS


def test_passages_that_do_not_fit_change_nothing(responder: Responder, roster: Roster) -> None:
    question = "What are your opening hours?"
    assert ask_with(responder, roster, question, ("Notice", NOTICE)) == ask_with(responder, roster, question)
    assert ask_with(responder, roster, "Hello!", ("Notice", NOTICE)).text == HELLO


def test_a_colleague_who_knows_clearly_more_than_the_passages_takes_the_call(
    responder: Responder, roster: Roster
) -> None:
    answer = ask_with(responder, roster, "My router keeps restarting and does not work", ("Notice", NOTICE))
    assert only_call(answer) == ("transfer_to", {"specialist": "tech_support"})
