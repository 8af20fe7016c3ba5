"""What a caller does with a sentence, apart from what it is about: greet, thank, agree, say that nothing helped."""

import re

from local.providers.passages import FILLERS, SHORTEST_FUZZY, content, stems, tokens, vocabulary, words
from local.providers.synonyms import plainly

TAKE_YOUR_TIME = "Of course, take your time."
GOODBYE = "Thank you for calling. Goodbye!"
YOU_ARE_WELCOME = "You are welcome. Is there anything else I can do for you?"
HELLO = "Hello! How can I help you?"
GLADLY = "Of course. What can I help you with?"
ANYTHING_ELSE = "All right. Is there anything else I can do for you?"
AUTOMATED = "I am an automated assistant, not a human being. I can put you through to a colleague if you like."
GLAD_TO_HEAR = "I am glad to hear that. Is there anything else I can do for you?"

KINDS = {
    "wait": vocabulary("stop wait hold hang pause moment minute second sorry excuse interrupt"),
    "parting": vocabulary("bye goodbye farewell later day ciao"),
    "thanks": vocabulary(
        "thanks thank appreciate cheers great perfect wonderful excellent nice kind lovely awesome fantastic brilliant"
    ),
    "greeting": vocabulary("hello hi hey morning afternoon evening good greetings"),
    "help": vocabulary("help helpful helped"),
    "yes": vocabulary(
        "yes yeah yep sure please okay ok absolutely definitely exactly correct fine alright agreed ahead"
    ),
    "no": vocabulary("no nope nothing not all everything never mind questions"),
}
SMALL_TALK = frozenset[str]().union(*KINDS.values())

#: Words that say that what was tried did not help, and those around them.
VAIN_WORDS = vocabulary(
    """still same already tried help helped helping helps work worked works working didnt doesnt dont didn doesn isnt
    not no nothing luck change changed difference better fixed solved improvement yet unfortunately again cant wont but
    however steps done step everything use happened happens did made make makes problem issue it keeps"""
)
_PER_MONTH = vocabulary(
    """month monthly months per year yearly currently exactly pay paying look come want ask asking spend owe total
    altogether roughly each every actually money take"""
)
_NOT = r"(?:(?:did|does|has|have|is|was|wo) ?n.?t|(?:did|does|has|is|was|will) not|not|never)"
_IN_VAIN = re.compile(
    r"\b(?:"
    r"still|to no avail|no (?:luck|change|difference|improvement|success|effect|use)|"
    r"same (?:problem|issue|thing)|(?:just|all|exactly) the same|already (?:did|tried|done)|"
    r"(?:have|ive|i) (?:already )?(?:tried|done) (?:that|it|this|all|every)\w*|"
    r"nothing (?:helps|helped|works|worked|changes|changed|happens|happened)|"
    rf"{_NOT} (?:really |seem to |do |any )?"
    r"(?:help|work|fix|solve|change|better|improve|any|good|working|fixed|solved|anything)\w*"
    r")\b"
)
#: These alone may also begin a first report of a fault.
_FAULT = re.compile(r"\b(not|n.?t|never) (really )?work(ing|s|ed)?\b")
_SOLVED = re.compile(
    r"\b(works|working|worked|running|back|fixed|solved|helped|trick)\b.*\b(now|again|thanks?|great|perfect|fine|well)\b|"
    r"\b(thanks?|great|perfect|wow|oh)\b.*\b(works|worked|working|helped|fixed|solved|trick)\b|"
    r"^(oh |ah |yes |ok |okay )*(it|that) (works|worked|helped|did the trick)\W*$"
)
_NEGATED = re.compile(r"\b(not|no|never|cannot|without|nothing|still|but|\w+n.t)\b")
_REPEAT = re.compile(
    r"\b(repeat|say (that|it|this) (again|once more)|once more|one more time|come again|pardon|"
    r"(did ?n.t|did not|could ?n.t|could not) (quite |really )?(hear|catch|get|understand) (you|that|it|what)|"
    r"what did you (just )?say|go on|continue|carry on|you were saying)\b"
)
_PRICE = vocabulary("price prices priced cost costs costing expensive cheap dollars charge charged charges pricey")
_HOW_MUCH = re.compile(
    r"\bhow much(?: more| money| extra)?(?= (?:is|are|was|do|does|did|will|would|for|per|a|the|it|that|to|must|"
    r"should|can|am|i|if)\b|\W*$)(?! (?:\w+ ){1,3}(?:save|need))|"
    r"\bhow (?:many|high)\b.*\b(?:dollars|price|cost|charge)\b|"
    r"\bwhat (?:would|do|will|must|should|did|does|am|are) (?:i|we|you|they|one|it|that|this) "
    r"(?:(?:have|need|be|get|to|actually|really|usually) )*"
    r"(?:pay|paying|ask|asking|charge|charging|owe|spend|come to)\b|"
    r"\bwhat (?:would|do) you (?:want|take|ask) for\b|"
    r"\bwhat (?:will|would|is|does) .{1,40} (?:a|per|each|every) month\b|"
    r"\bwhat (?:will|would) (?:the|a|your|that|this) .{1,30} be\b|\bhow cheap\b"
)
#: What asks for somebody who is not a machine, or is somebody else.
_SOMEBODY = re.compile(
    r"\b(?:(?:some|any)(?:body|one) (?:real|else|human|alive)|human(?: being)?s?|(?:real|actual|living|live) "
    r"(?:person|people|man|woman|agent|colleague|employee)|(?:to|with|get|have|me|want|need) (?:another|a different) "
    r"(?:person|man|woman|agent|colleague|employee)|operator|representative|(?:one|some|any) of your colleagues|"
    r"(?:not|no|than|stupid|you are|to) (?:a |another )?(?:machine|robot|computer|bot)|"
    r"(?:talk|speak|speaking|talking) (?:to|with) (?:a |some |the )?(?:person|people|colleague|somebody|someone)\b"
    r"(?=\W*$|\W+(?:please|instead)\b))\b"
)
_ARE_YOU = re.compile(
    r"\b(?:are you|am i (?:talking|speaking) (?:to|with)) (?:really )?(?:a |an |some )?(?:real |actual |live |living )?"
    r"(?:human(?: being)?|person|robot|machine|computer|bot|ai|artificial|real|recording|automat\w+)\b[^.?!]{0,20}\?"
)
_AGAIN = re.compile(
    r"\b(?:again|once more|one more time|repeat|remind|was|read|spell|write (?:it|that|this) down|forgot|"
    r"forgotten|lost|what is|what s|whats|tell me)\b"
)
_ANOTHER = vocabulary("another new second further different additional")
#: What only somebody with the means can do; to be told something is not among them.
_DOING = (
    r"(?:cancel|terminate|end|stop|book|reserve|arrange|send|mail|post|email|refund|pay|transfer the|reset|change|"
    r"upgrade|downgrade|switch|move|order|sign me|delete|remove|correct|take|deduct|reduce|credit|unlock|make me|"
    r"create|set|enter|add|register)"
)
_TO_BE_DONE = re.compile(
    r"(?:^|[.!?,;]\s+)(?:(?:and|so|then|well|ok|okay|now|please|just|right|simply|kindly|yes|no)\W+)*"
    r"(?:(?:can|could|would|will) you (?:(?:please|just|kindly|also|then|perhaps|maybe) )*|i want you to |you should )?"
    rf"{_DOING}\b(?! (?:does|is|are|was|it is)\b)"
)
_DONE = re.compile(
    r"\b(?:(?:have|did) you|(?:has|is|was) (?:it|that|this|my|the|everything))\b[^.?!]*\b(?:cancell?ed|terminated|"
    r"booked|reserved|sent|mailed|refunded|reset|changed|upgraded|ordered|deleted|corrected|deducted|credited|done|entered)\b"
)

_REFUSING = (
    r"\b(?:no|not|n't|dont|without)\s+"
    r"(?:(?:want|need|open|create|file|make|like|to|you|me|a|an|the|any|another|have|please|that|yet|just)\s+)*"
)
_WITHDRAWING = r"\b(?:cancel|close|delete|withdraw|drop|forget)\s+(?:(?:my|the|that|this|a|about)\s+)*"
_ASKING = (
    r"^\W*(?:(?:and|so|but|okay|ok|hello|hi)\W+)*"
    r"(?:(?:what|how)(?! about)|when|why|where|who|which|has|have|did|was|"
    r"(?:is|are) (?:my|the|this|that|there)|do i need)\b"
)

_AGREEING = vocabulary("do would could good go idea")
#: What is said around a request and is not what the request is about.
REQUEST = vocabulary(
    "open create file raise log submit make give get need want start put support another one issue report case please"
)


def small_talk(question: str, *, name: str = "") -> str:
    """The reply to words that ask for nothing; empty when they do ask for something. `name` is the caller's."""
    if is_solved(question):
        return GLAD_TO_HEAR
    if _ARE_YOU.search(_lower(question)):
        return AUTOMATED
    kinds = [_kinds(word) for word in tokens(question) if word not in FILLERS or word in SMALL_TALK]
    if not kinds or not all(kinds):
        return ""
    heard = frozenset[str]().union(*kinds)
    goodbye, hello = _addressed(GOODBYE, name), _addressed(HELLO, name)
    if "thanks" in heard:
        return goodbye if heard & {"parting", "no"} else YOU_ARE_WELCOME
    replies = {"wait": TAKE_YOUR_TIME, "parting": goodbye, "help": GLADLY, "greeting": hello}
    return next((reply for kind, reply in replies.items() if kind in heard), ANYTHING_ELSE)


def _addressed(text: str, name: str) -> str:
    """The text with the caller's name at the end of its first clause."""
    return re.sub(r"(?=[.!])", f", {name}", text, count=1) if name else text


def _kinds(word: str) -> frozenset[str]:
    def belongs(known: str) -> bool:
        return word == known or (len(known) >= SHORTEST_FUZZY and word.startswith(known))

    return frozenset(kind for kind, known_words in KINDS.items() if any(map(belongs, known_words)))


def _lower(text: str) -> str:
    return text.casefold().replace("\u2019", "'")


def is_solved(question: str) -> bool:
    """Whether the caller says that the trouble is over."""
    text = _lower(question)
    return bool(_SOLVED.search(text)) and not _NEGATED.search(text) and not text.rstrip().endswith("?")


def is_in_vain(question: str, *, about: frozenset[str]) -> bool:
    """Whether the caller says that what was suggested did not help; `about` are the stems of what was talked about.

    A sentence that brings up something else is not about that suggestion.
    """
    text = _lower(question)
    if not _IN_VAIN.search(text) or text.rstrip().endswith("?"):
        return False
    fresh = stems(question) - stems(" ".join(VAIN_WORDS | SMALL_TALK | REQUEST)) - about
    return len(fresh) <= (0 if _FAULT.search(text) and "still" not in text else 1)


def wants_repetition(question: str) -> bool:
    """Whether the caller did not hear it all."""
    return bool(_REPEAT.search(_lower(question))) and len(content(question)) <= 5


def asks_price(question: str) -> bool:
    """Whether the caller wants to know what something costs."""
    plain = plainly(question)
    return bool(words(plain) & _PRICE or _HOW_MUCH.search(plain))


def asks_for_somebody(question: str) -> bool:
    """Whether the caller wants to speak with a human, or with somebody else, and does not say about what."""
    return bool(_SOMEBODY.search(_lower(question)))


def asks_again(thing: str, question: str) -> bool:
    """Whether the caller wants to hear once more of the thing that was made for them, rather than have another made."""
    heard = words(question)
    is_named = thing in heard or bool(heard & {"number", "reference"})
    return is_named and bool(_AGAIN.search(_lower(question))) and not heard & _ANOTHER


def wants_it_done(question: str) -> bool:
    """Whether the caller tells somebody to do a thing, or asks whether it has been done, rather than how it is done."""
    text = _lower(question)
    return bool(_TO_BE_DONE.search(text) or _DONE.search(text))


def without_price(text: str) -> list[str]:
    """The telling words of the sentences that ask for a price, in order, without those that only ask."""
    asking = _PRICE | FILLERS | SMALL_TALK | _PER_MONTH
    sentences = [sentence for sentence in re.split(r"(?<=[.!?])\s+", text) if asks_price(sentence)] or [text]
    return [word for word in tokens(plainly(" ".join(sentences))) if word not in asking and len(word) > 1]


def agrees(question: str) -> bool:
    """Whether the caller accepts an offer and says nothing else."""
    heard = words(question)
    refused = bool(heard & {"no", "nope", "not", "dont", "never"})
    rest = content(question) - KINDS["yes"] - KINDS["thanks"] - REQUEST - _AGREEING
    return bool(heard & (KINDS["yes"] | {"do", "go", "open"})) and not refused and not rest


def asks_for(thing: str, question: str) -> bool:
    """Whether the caller, who names a thing, asks for it, rather than about it or to do without it."""
    text = plainly(question)
    against = (rf"{_REFUSING}{thing}", rf"{_WITHDRAWING}{thing}", rf"{_ASKING}[^.!]*\b{thing}")
    return not any(re.search(expression, text) for expression in against)
