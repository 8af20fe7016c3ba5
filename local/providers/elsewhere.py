"""What people talk about elsewhere: a question that is closer to one of these than to any passage is nobody's here."""

import numpy as np

from local.providers.passages import Embed, asking_sentence, stems
from local.providers.synonyms import plainly

#: One topic a line, in the words that come up with it.
TOPICS: tuple[str, ...] = tuple(
    """
weather forecast: rain, snow, sun, temperature outside, umbrella
train timetable: when does the next train or tram leave
bus timetable: bus stop, bus to the airport
flight to another country, airline, airport, plane ticket
hotel room, holiday trip, beach, sightseeing
taxi ride, car hire
car repair, garage, engine oil, tyres, used cars for sale
bicycle, motorcycle, scooter
petrol, electricity, gas and water supply
restaurant, table for dinner, pizza, menu
cooking recipe: bake a cake, boil eggs, soup
groceries: bread, milk, vegetables, fruit, meat, coffee, beer, wine
supermarket, bakery, butcher, pharmacy
clothes and shoes: boots, jacket, trousers, dress
hairdresser, haircut, barber, beauty, make-up
washing machine, dishwasher, fridge, oven, vacuum cleaner
plumber: leaking tap, blocked toilet, water pipe, heating
furniture: sofa, bed, table, kitchen, lawn mower
gardening: flowers, lawn, roses, trees
dog, cat, horse, bird, pets, veterinarian
doctor, dentist, hospital, medicine, headache, fever, pain
fitness, running, gym, diet, losing weight
football match result, team, championship, world cup
tennis, basketball, olympic games, horse race, betting
lottery numbers, casino, gambling
cinema film, actor, theatre, opera, concert tickets
song, music, singer, guitar, piano lessons
book, novel, poem, author, library
tell me a joke, a riddle, a story
chess, cards, video games
history: king, queen, emperor, war, ancient Rome
president, prime minister, election, parliament, politics
geography: capital city, river, mountain, country, population
planets, stars, moon, astronomy, space travel
physics, chemistry, biology, dinosaurs, animals of the world
mathematics: add, multiply, divide, square root
what date is it today, what time is it now, time zone
translate into French, Spanish or German, foreign language, spelling, grammar
write a letter, an essay, homework, a program for me
school, teacher, examination
bank account, mortgage, savings, interest rate, loan of money
stock market, shares, bitcoin, exchange rate of a currency
taxes, tax return, accountant
insurance: life, health, car accident
lawyer, court, divorce, police, crime, thief, emergency, fire brigade
passport, visa, driving licence, town hall
wedding, birthday present, party, christmas tree
marriage, girlfriend, boyfriend, love, dating
religion, church, god, meaning of life
baby, nappies, kindergarten
flat to rent, buying a house, landlord
post office, parcel, stamps, letter delivery
jewellery, gold, watch, perfume
camera, toys, tools, paint, batteries
mobile phone contract, smartphone to buy, laptop or printer to buy, broken printer
are you married, how old are you, favourite colour, what do you like
horoscope, star sign, dreams, ghosts
recommend a film, a place to go, a good bar
""".strip().splitlines()
)


class Elsewhere:
    """How close a question is to what people talk about elsewhere; `embed` as for `Index`."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._topics = embed(TOPICS)
        self._words = stems(" ".join(TOPICS))

    def names(self, question: str) -> bool:
        """Whether a word of the question is one that stands for a topic here, and is not misheard."""
        return bool(stems(question) & self._words)

    def closeness(self, question: str) -> float:
        """The cosine of what the question asks with the closest topic."""
        return float(np.max(self._topics @ self._embed([asking_sentence(plainly(question))])[0]))
