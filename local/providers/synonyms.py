"""Everyday words for the same thing, so that a question is understood in whatever words it is asked."""

import re

#: One group a line, applied from the top: the plainest words for it, and after the colon what else people say; a star
#: stands for any ending.
_GROUPS = """
address: located, situated, where are you, find you, get to you, find your office
appointment: book a time, reserv*, walk in, drop in, drop by
basic: starter
bill: invoice*
booster: repeater*, extender*
does not work: stopped working, gave up, is broken, is defect*, is faulty, is busted, is kaput
buy order: purchas*, sign up, sign me up, subscribe, become a customer, get started
cancel my contract: cancel my subscription, end my contract, end my subscription, get rid of my contract
cancel: get rid of, terminat*, quit, unsubscrib*, notice period
card: mastercard, visa
change: switch*, downgrad*, swap*
children: kid, kids, toddler*, teenager*
complaint: unhappy, dissatisf*, not satisfied, disappointed, angry, terrible, awful, annoyed, not happy
connected: hooked up
contract term: commit*, locked in, locked into, tied to, tied down, bound
cost: fee, fees, rate, rates, pric*, set me back
crash: crashes, crashing, closes by itself, keeps closing, shuts down, quits
discount: deal, deals, promotion*, reduction*, rebate*, cheaper, pay less
email: e-mail*, mails, inbox
fixed: static
front desk: reception, receptionist
have: choose from, can choose
hiring jobs: job, vacanc*, open position*, job opening*, career*, recruit*, work for you, work with you, employment
holiday: christmas, easter, new year
internet connection: get online, go online, broadband
larger companies: corporation*, enterprise*, big company, large company, employees, headquarters, branches
light: lamp*, led, leds
locked: blocked, lock me out, locked out
login: log in, logging in, log on, sign in, signing in
moving house: relocat*, new flat, new apartment, new house, new home, move house, changing my address
my name: who am i, who i am, i am called, i'm called, am i called
no connection: offline
outage: disruption*, blackout*, downtime
password: passcode*, pin
pay by: payment method*, payment option*, ways to pay
pay: settle
person: human, human being, real person, operator
plan: internet option*, package*, tariff*, subscription*, bundle*
premium: pro, professional
recording: record, recorded, taped
refund: money back, money returned, reimburse*
restart: reboot*, turns itself off, switches itself off
router: modem*
seniors: retire*, pensioner*, elderly, grandmother, grandfather, senior
slow: sluggish, buffer*, crawl*, lag, laggy, lagging, take forever, takes forever
street: road
support ticket: escalate, escalated, report this, log this, support case, trouble ticket, raise an issue
technician: engineer*, repairman, repair man, send somebody, send someone, somebody come, someone come
telephone: landline*, phone line, fixed line
television picture freezes: picture stutters, screen freezes
television: tv, telly
trial: test period, trial*, test it, test your, try it, try your, try before
upgrade: move up, step up
what plans: which plans
whole year: yearly, annual*, annually, twelve months, in advance, upfront, up front
wireless: wifi, wi-fi, wlan
"""


def _pattern(expression: str) -> str:
    return re.escape(expression.strip()).replace(r"\*", r"\w*").replace(r"\ ", r"\s+")


_PLAIN = {
    plain: re.compile(rf"\b(?:{'|'.join(map(_pattern, others.split(',')))})\b")
    for plain, others in (line.split(":") for line in _GROUPS.strip().splitlines())
}
_PLEASE = re.compile(r",?\s*\bplease\b")


def plainly(text: str) -> str:
    """The text in lower case, with the plainest words for each thing it names and without the "please"."""
    plain = _PLEASE.sub("", text.casefold().replace("\u2019", "'"))
    for words, expressions in _PLAIN.items():
        plain = expressions.sub(words, plain)
    return plain
