"""Everyday words for the same thing, so that a question is understood in whatever words it is asked."""

import re

#: Groups, applied from the top: the plainest words for a thing, and after the colon what else people say; a star stands
#: for any ending, and an indented line goes on with the one before.
_GROUPS = """
address: located, situated, where are you, find you, get to you, find your office
appointment: book a time, reserv*, walk in, book a slot, fix a date, turn up, come unannounced, stop by, pop in, make
  a date
basic: starter
bill: invoice*
booster: repeater*, extender*
buy order: purchas*, sign up, sign me up, subscribe, become a customer, get started, become customers, new customer,
  new connection, place an order
cancel: get rid of, terminat*, quit, unsubscrib*, notice period
cancel my contract: give notice, give you notice, hand in my notice, end my agreement, leave northwind, stop my
  contract, cancel my subscription, end my contract, end my subscription, get rid of my contract, be your customer,
  leave you, enough of you, end the contract, stop being a customer, close my contract, get out of
card: mastercard, visa
call you back: ring me, phone me, call me back, get back to me
change: switch*, downgrad*, swap*
children: kid, kids, toddler*, teenager*
complaint: furious, shouted at, yelled at, insulted, ignored me, outraged, upset with, badly treated by, unhappy,
  dissatisf*, not satisfied, disappointed, angry, terrible, awful, annoyed, not happy, rude, rudely, unacceptable, fed
  up, impolite, unfriendly, kept me waiting, keep me waiting, unprofessional, outrageous, badly treated, a disgrace,
  disgraceful, complain, complaining
connected: hooked up, get your line, reach my, reach our, available at, available in, available where, deliver to
contract term: commit*, locked in, locked into, tied to, tied down, bound, minimum, shortest time, obligation, bind
  myself, tied
cost: price tag, how pricey, the damage, out of pocket, fee, fees, rate, rates, pric*, set me back
coverage: reach me, reach us, reach you, fibre reach, network reach, get fibre, get your fibre
crash: crashes, crashing, closes by itself, keeps closing, shuts down, quits
data: my phone number, my telephone number, information do you, information you have, store about, keep about, know
  about me, personal information, my details, information about me, personal details
direct debit: straight from my, from my bank, from my account, standing order, withdraw
discount: deal, deals, promotion*, reduction*, rebate*, cheaper, pay less, something off, money off, special offer*,
  special price*, loyalty
does not work: stopped working, gave up, is broken, is defect*, is faulty, is busted, is kaput, is dead, went dead,
  has died, is out of order, does nothing, won't start, will not start, won't turn on
email: e-mail*, mails, inbox
error code: error message, error number, says error, shows error, getting error, get error
faster plan: faster internet, more speed, higher speed, more bandwidth
fixed: static
free: free of charge, at no charge, without charge, at no cost, for nothing
freezes: frozen, stuck, stutter*, pixelated, jerky
front desk: reception desk, receptionist
hiring jobs: job, vacanc*, open position*, job opening*, career*, recruit*, work for you, work with you, employment,
  my cv, resume, résumé, looking for work, take people on, taking people on, internship*, apply for, work at your,
  look for staff
holiday: christmas, easter, new year
installed: set up at, come to install, put in
internet connection: get online, go online, broadband
larger companies with several locations: hundred staff, thousand staff, hundred people, thousand people, thousand
  employees, hundred employees, several offices, many offices, corporation*, enterprise*, big company, large company,
  employees, headquarters, branches, big firm, large firm, hundreds of, subsidiaries
opening hours: until what time, till what time, how late, when do you shut, what time do you shut, when do you close
late payment days to pay: bill due, payment due, is due, by when, overdue, forgot to pay, forgotten to pay, too late,
  behind with, how long may i take to pay, how long do i have to pay, how long can i take to pay, time to pay,
  deadline, short of money, reminder*
light: lamp*, led, leds
locked: blocked, lock me out, locked out, shut out, locked up
login: log in, logging in, log on, sign in, signing in
megabits gigabits: how fast, how quick, what speed, which speed, bandwidth
moving house: relocat*, new flat, new apartment, new house, new home, move house, changing my address, move out, move
  away, moving away, new place, move to another, i am moving, we are moving
my name: who am i, who i am, i am called, i'm called, am i called
no internet connection: drops out, dropping out, connection drops, keeps dropping, keeps cutting out, nothing loads,
  nothing opens, nothing on the internet, without internet, internet is gone, internet is dead, internet is down,
  internet has gone, cut off, offline, internet stopped working
known outage: breakdown, break down, major failure, general failure, network is down, disruption*, blackout*,
  downtime, other people, anyone else, anybody else, everybody else, my neighbours, my neighbors, the whole street,
  the whole town
parental controls: limit what, restrict what, control what, block websites, block sites, youth protection, not meant
  for children
parking: truck, place to park, somewhere to park, leave my car, leave the car, car park, van, lorry, put my car, park
  my car, park the car
password: passcode*, pin
pay: shell out, fork out, cough up, settle
pay by: payment method*, payment option*, ways to pay
person: human, human being, real person, operator
plan: internet option*, package*, tariff*, subscription*, bundle*
premium: pro, professional
public holiday: bank holiday*, public holidays
recording: record, recorded, taped
refund: money back, money returned, reimburse*
restart: reboot*, turns itself off, switches itself off
router: hardware, internet box, the box, my box, your box, modem*
seniors: retire*, pensioner*, elderly, grandmother, grandfather, senior
slow: sluggish, buffer*, crawl*, lag, laggy, lagging, take forever, takes forever
smallest: cheapest, least expensive, lowest priced, tiniest, littlest
street: road
students: university, college, i study, studying, apprentice*, pupil*
support ticket: ticket with support, escalate, escalated, report this, log this, support case, trouble ticket, raise
  an issue
technician: engineer*, repairman, repair man, send somebody, send someone, somebody come, someone come, somebody
  round, someone round, somebody over, someone over, come round, come over, house call
telephone: landline*, phone line, fixed line, receiver, handset
television: tv, telly
television picture freezes: picture stutters, screen freezes
trial: test period, trial*, test it, test your, try it, try your, try before, try out, test month, without paying,
  before paying, before i pay, before i have to pay, test the
upgrade: move up, step up
villages nearby: suburb*, hamlet*, countryside, rural, outskirts, outside the city, outside the town, outside of town,
  out of town
which plan to choose: what do you recommend, would you recommend, which would you, which one would you, which plan is
  right, which plan is best, right plan for me, best plan for me
what plans: which plans, choose from, can i choose, what plans are there, options do you have, do you have to offer
what the company does: what do you do, who are you, kind of business, kind of company, sort of company, sort of
  business
whole year: yearly, annual*, annually, twelve months, in advance, upfront, up front
wireless: wifi, wi-fi, wlan
wireless signal is weak: reception is, poor reception, bad reception, no reception, one bar, no bars, few bars, does
  not reach, doesn't reach
"""


def _pattern(expression: str) -> str:
    return re.escape(expression.strip()).replace(r"\*", r"\w*").replace(r"\ ", r"\s+")


_PLAIN = {
    plain: re.compile(rf"\b(?:{'|'.join(map(_pattern, others.split(',')))})\b")
    for plain, others in (line.split(":") for line in re.sub(r"\n  ", " ", _GROUPS).strip().splitlines())
}
_PLEASE = re.compile(r",?\s*\bplease\b")


def plainly(text: str) -> str:
    """The text in lower case, with the plainest words for each thing it names and without the "please"."""
    plain = _PLEASE.sub("", text.casefold().replace("\u2019", "'"))
    for words, expressions in _PLAIN.items():
        plain = expressions.sub(words, plain)
    return plain
