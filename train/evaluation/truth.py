"""Truth of captions: nouns that no human caption of the image names or suggests (CHAIR, Rohrbach et al. 2018, arXiv
1809.02156). Human captions stand in for annotated objects, so that any captioned data set will do.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from blip2rt.native import native

# A noun and its other words, then, after the bar, words that suggest it: with one of them it is not asked about.
_NOUNS = """
person persons people man men woman women child children boy boys girl girls guy guys lady ladies kid kids toddler baby
    babies | adult couple player players rider biker climber surfer skier skateboarder snowboarder batter pitcher
    catcher crowd group family he his him she her cowboy worker officer chef someone hand hands
man men guy guys male gentleman | boy boys person people someone couple adult player players rider biker climber surfer
    skier skateboarder snowboarder batter pitcher catcher child children kid kids toddler crowd group family he his him
    cowboy worker officer chef
woman women lady ladies female | girl girls person people someone couple adult player players rider surfer skier child
    children kid kids toddler crowd group family she her bride
child children kid kids boy boys girl girls toddler baby babies infant | person people family crowd group young little
dog dogs puppy puppies | animal animals pet pets terrier labrador retriever poodle greyhound
cat cats kitten kittens kitty | animal animals pet pets
horse horses pony ponies | animal animals cowboy carriage rodeo jockey polo zebra zebras
cow cows cattle bull bulls calf | animal animals herd ox oxen
sheep lamb lambs ram | animal animals herd flock goat goats
elephant elephants | animal animals
giraffe giraffes | animal animals
zebra zebras | animal animals
bear bears | animal animals polar
bird birds seagull seagulls duck ducks goose geese parrot pigeon pigeons owl eagle chicken chickens swan swans |
    animal animals flock
car cars taxi taxis sedan convertible | vehicle vehicles traffic street road highway parking truck trucks van
truck trucks pickup | vehicle vehicles traffic van firetruck lorry
bus buses | vehicle vehicles traffic trolley coach transit
train trains locomotive | railroad railway tracks track rail subway station tram trolley engine
bicycle bicycles bike bikes | cyclist cyclists biker bikers motorcycle motorcycles motorbike motorbikes bmx cycling
motorcycle motorcycles motorbike motorbikes scooter moped | bike bikes biker bikers rider motorcyclist dirtbike
airplane airplanes plane planes jet jets aircraft airliner | airport runway flight biplane
boat boats ship ships sailboat canoe kayak ferry raft | harbor dock pier marina vessel
bench benches | seat seats park sitting
umbrella umbrellas parasol | beach rain
kite kites | parasail flying parachute
surfboard surfboards | surf surfing surfer surfers board boards bodyboard wave
skateboard skateboards | skate skating skateboarder skateboarders skateboarding board ramp
snowboard snowboards | snowboarder snowboarding board
skis ski | skier skiers skiing slope snow
frisbee frisbees | disc disk
ball balls basketball football soccer baseball tennis volleyball softball rugby | game sport playing court
racket racquet rackets racquets | tennis badminton
pizza pizzas | food meal slice pie
cake cakes cupcake cupcakes | food dessert pastry birthday
sandwich sandwiches burger hamburger | food meal sub toast bun
banana bananas | fruit fruits
apple apples | fruit fruits
broccoli | vegetable vegetables food
donut donuts doughnut doughnuts | food pastry pastries
table tables | desk desks dining kitchen counter food plate meal sitting restaurant cup laptop
chair chairs | seat seats stool sitting table desk room dining office
couch couches sofa sofas loveseat | sitting room chair furniture seat living
bed beds mattress | bedroom hotel blanket blankets sleeping laying lying pillow pillows
toilet toilets urinal urinals | bathroom restroom
sink sinks | bathroom kitchen restroom faucet
television televisions tv tvs | screen monitor living room game wii
laptop laptops notebook | computer computers desk
keyboard keyboards | computer computers desk laptop laptops piano
phone phones cellphone cellphones smartphone telephone | talking texting cell
clock clocks | watch tower time
vase vases | flower flowers pot
book books | bookshelf reading library shelf magazine
bottle bottles | wine beer drink drinking water
cup cups mug mugs | coffee tea drink drinking
refrigerator refrigerators fridge | kitchen freezer
microwave microwaves | kitchen oven appliances
snow snowy | ski skis skier skiers skiing snowboard snowboarder snowboarding sled winter ice icy
beach beaches | ocean sea sand sandy shore surf water surfer surfers coast waves
hat hats cap caps | helmet helmets wearing dressed uniform hats costume
"""


@dataclass(frozen=True)
class Noun:
    """words: that name it, first the one that is asked for. hints: that suggest it."""

    words: tuple[str, ...]
    hints: frozenset[str]

    @property
    def name(self) -> str:
        return self.words[0]


def _nouns() -> list[Noun]:
    entries = re.sub(r"\n\s+", " ", _NOUNS.strip()).splitlines()
    split = [[part.split() for part in entry.partition("|")[::2]] for entry in entries]
    return [Noun(tuple(words), frozenset(hints)) for words, hints in split]


NOUNS = _nouns()
_PERSON = NOUNS[0].name  # "a man" is also a person: counted once, as what it says


def named(caption: str) -> list[Noun]:
    """The nouns in a cleaned caption; a person only if it names no man, woman or child."""
    words = set(caption.split())
    found = [noun for noun in NOUNS if not words.isdisjoint(noun.words)]
    specific = any(noun.name in ("man", "woman", "child") for noun in found)
    return [noun for noun in found if noun.name != _PERSON or not specific]


def invented(caption: str, references: Sequence[str]) -> list[Noun]:
    """The nouns in a cleaned caption that no cleaned reference names or suggests."""
    words = set(" ".join(references).split())
    return [noun for noun in named(caption) if words.isdisjoint((*noun.words, *noun.hints))]


def chair(references: Sequence[Sequence[str]], captions: Sequence[str]) -> dict[str, float]:
    """The per cent of captions with an invented noun, and of nouns that are invented."""
    clean = native.clean_caption
    texts = list(map(clean, captions))
    wrong = [len(invented(text, list(map(clean, human)))) for text, human in zip(texts, references, strict=True)]
    nouns = sum(len(named(text)) for text in texts)
    return {"chair_captions": 100 * sum(map(bool, wrong)) / len(texts), "chair_nouns": 100 * sum(wrong) / max(nouns, 1)}
