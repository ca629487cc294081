"""Words and sentences about everyday things, of which no canvas of digits shows any.

They fill lists with entries that never fit, descriptions and captions with ordinary English, and the tokenizer with
its words. No number word is among them, so that nothing here can be mistaken for a digit.
"""

from collections.abc import Sequence
from random import Random

THINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "animal": (
        tuple(
            """horse cow sheep goat pig donkey camel tiger lion bear wolf fox rabbit squirrel mouse hedgehog bat deer
            elephant giraffe zebra monkey whale dolphin seal penguin owl eagle swan duck goose chicken parrot snake
            lizard turtle frog salmon shark crab spider beetle butterfly bee ant snail""".split()
        ),
        ("{a}, an animal, wild or tame", "any {noun}, whole or in part", "an animal of this kind, {a}"),
    ),
    "tool": (
        tuple(
            """hammer saw drill wrench screwdriver axe shovel rake ladder rope bucket broom scissors needle chisel
            pliers brush sponge tape nail hook lever pump torch compass ruler anvil wheelbarrow""".split()
        ),
        ("{a}, a tool for work", "any {noun} in use or put away", "work that is done with {a}"),
    ),
    "weather": (
        tuple(
            "rain snow fog hail thunder lightning storm wind sunshine frost drizzle rainbow dusk dawn".split()
        ),
        ("{noun}, a kind of weather", "a sky or a street in {noun}", "{noun} outside, near or far"),
    ),
    "food": (
        tuple(
            """bread cheese butter soup rice pasta salad pizza apple banana cherry lemon orange grape melon potato
            tomato onion carrot garlic honey sugar cake biscuit chocolate coffee tea milk juice egg sandwich
            pancake mushroom pepper cabbage""".split()
        ),
        ("{noun}, something to eat or drink", "any {noun} on a table", "a meal with {noun}"),
    ),
    "vehicle": (
        tuple(
            """car bus train tram bicycle lorry tractor aeroplane helicopter ship boat ferry canoe rocket
            motorcycle scooter wagon sledge balloon submarine""".split()
        ),
        ("{a}, a vehicle of any make", "any {noun}, moving or parked", "people who travel by {noun}"),
    ),
    "place": (
        tuple(
            """beach mountain desert forest lake river island cave village city market school library church castle
            museum hospital station airport harbour bridge farm garden park stadium factory office kitchen cellar
            attic theatre""".split()
        ),
        ("{a}, seen from inside or outside", "any {noun} with or without people", "a view of {a}"),
    ),
    "furniture": (
        tuple(
            """table chair sofa bed wardrobe shelf desk lamp mirror carpet curtain cushion blanket clock vase oven
            stove sink bathtub fridge stool bench cupboard""".split()
        ),
        ("{a}, a piece of furniture", "any {noun} in a room", "a room with {a} in it"),
    ),
    "clothing": (
        tuple(
            "hat coat scarf glove shoe boot shirt dress skirt trousers sock belt ring necklace jacket uniform".split()
        ),
        ("{a}, something to wear", "any {noun}, worn or lying about", "a person in {a}"),
    ),
    "plant": (
        tuple(
            "tree rose daisy grass moss ivy oak pine cactus bamboo wheat clover nettle lavender sunflower".split()
        ),
        ("{a}, a plant", "any {noun}, growing or cut", "the leaves of {a}"),
    ),
    "music": (
        tuple(
            "guitar drum flute trumpet harp cello banjo organ whistle choir concert song".split()
        ),
        ("{a}, which makes music", "any {noun}, played or silent", "the sound of {a}"),
    ),
    "doing": (
        tuple(
            """swimming dancing cooking reading gardening shopping fishing climbing sailing painting sewing teaching
            sleeping running arguing laughing waiting cleaning building travelling voting singing knitting
            celebrating advertising banking farming hiking camping skating""".split()
        ),
        ("people who are {noun}", "{noun}, alone or in company", "any scene of {noun}"),
    ),
    "idea": (
        tuple(
            """friendship patience kindness sorrow pride hunger justice trade science history weather travel money
            law news sport fashion holiday childhood marriage medicine language poetry politics business""".split()
        ),
        ("all that has to do with {noun}", "talk or signs of {noun}", "{noun} as people know it"),
    ),
    "person": (
        tuple(
            """baker doctor farmer teacher sailor pilot gardener painter tailor postman driver dancer clerk nurse
            carpenter waiter student grandmother neighbour tourist""".split()
        ),
        ("{a} at work or at rest", "any {noun}, young or old", "the portrait of {a}"),
    ),
}  # fmt: skip
"""Kind -> names of things, and descriptions with `a` (the name with an article) or `noun`."""

ADJECTIVES = tuple(
    """old new small big red blue green yellow brown black white grey broken clean dirty wooden golden silver quiet
    noisy heavy light warm cold wet dry empty full bright dark soft hard pretty ugly rare common cheap costly tall
    short wide narrow young tired happy sad busy lazy famous lost painted striped spotted sleepy gentle proud shy
    distant foreign ancient modern sunny rainy dusty muddy shiny rusty simple""".split()
)
PLACES = tuple(
    """in the kitchen|by the lake|near the old mill|on the hill|in the garden|at the market|behind the house|
    under the bridge|on the beach|in a small town|at the station|along the river|in the snow|on a wooden table|
    in front of the church|at the edge of the forest|in the workshop|beside the road|in the harbour|on the roof|
    in the middle of a field|at home|in the city|next to the window|below the stairs|across the valley""".replace(
        "\n    ", ""
    ).split("|")
)
TIMES = tuple(
    """in the morning|at noon|late in the evening|on a winter day|in summer|before the rain|after the storm|
    every Sunday|at night|once a year|in early spring|when nobody looks|as long as it is light|for hours""".replace(
        "\n    ", ""
    ).split("|")
)
VERBS = tuple(
    """watches|carries|has forgotten|looks for|paints|sells|remembers|repairs|walks past|waits for|dreams of|hides|
    finds|admires|cleans|borrows|describes|photographs|leans on|talks about|throws away|follows""".replace(
        "\n    ", ""
    ).split("|")
)
STYLES = tuple(
    """oil painting|soft light|wide angle|close view|fine detail|watercolour|pencil drawing|warm colours|
    pale colours|long shadows|film grain|studio photograph|golden hour|deep focus|sketch|high contrast|old postcard|
    poster|mosaic|children's book|calm mood|low sun|smooth texture|rough paper|sharp lines""".replace(
        "\n    ", ""
    ).split("|")
)
_ONSETS = (
    "b",
    "br",
    "c",
    "cl",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "pr",
)
_MORE_ONSETS = (
    "r",
    "s",
    "sk",
    "sl",
    "sn",
    "st",
    "str",
    "t",
    "tr",
    "v",
    "w",
    "y",
    "z",
    "sh",
    "ch",
    "th",
    "qu",
)
_VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ai", "ea", "oo", "ou", "ie")
_CODAS = (
    "",
    "",
    "",
    "b",
    "d",
    "ck",
    "l",
    "ll",
    "m",
    "n",
    "nd",
    "ng",
    "p",
    "r",
    "rk",
    "s",
    "st",
    "t",
    "x",
    "z",
    "ff",
)


def thing(rng: Random) -> tuple[str, str]:
    """The name of an everyday thing and a short description."""
    nouns, descriptions = rng.choice(tuple(THINGS.values()))
    noun = rng.choice(nouns)
    form = rng.random()
    if form < 0.35:
        noun = f"{rng.choice(ADJECTIVES)} {noun}"
    elif form < 0.45:
        noun = f"{noun} and {rng.choice(nouns)}"
    described = rng.choice(descriptions).format(a=with_article(noun), noun=noun)
    if rng.random() < 0.3:
        described += f", {rng.choice(PLACES)}"
    return (f"{noun} {rng.choice(PLACES)}" if form > 0.9 else noun), described


def with_article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def made_up_word(rng: Random) -> str:
    """A pronounceable word of two or three syllables, which means nothing."""
    onsets = (*_ONSETS, *_MORE_ONSETS)
    return "".join(
        rng.choice(onsets) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((2, 2, 3)))
    )


def sentence(rng: Random) -> str:
    """A sentence about everyday things."""
    persons, animals = THINGS["person"][0], THINGS["animal"][0]
    kind = rng.choice(tuple(THINGS.values()))
    who = f"{rng.choice(('The', 'A', 'Every', 'Some', 'Our'))} {_described(rng, rng.choice((*persons, *animals)))}"
    what = f"{rng.choice(('the', 'a', 'this', 'their'))} {_described(rng, rng.choice(kind[0]))}"
    text = f"{who} {rng.choice(VERBS)} {what} {rng.choice(PLACES)}"
    if rng.random() < 0.4:
        text += f" {rng.choice(TIMES)}"
    if rng.random() < 0.25:
        text += f", {rng.choice(('and', 'but', 'while'))} the {rng.choice(persons)} {rng.choice(VERBS)} it"
    return f"{text}."


def tags(rng: Random) -> str:
    """A few words as people write them for an image generator."""
    if rng.random() < 0.5:
        return rng.choice(STYLES)
    return f"{with_article(_described(rng, thing(rng)[0]))} {rng.choice(PLACES)}"


def prose(rng: Random, length: int, written: Sequence[str] = ()) -> str:
    """At least `length` characters of sentences, or of tags with commas; some from `written`, if there are any."""
    form = rng.random()
    parts: list[str] = []
    while sum(map(len, parts)) < length:
        if form < 0.25:
            parts.append(tags(rng))
        elif form < 0.6 and written:
            parts.append(rng.choice(written))
        else:
            parts.append(sentence(rng))
    return (", " if form < 0.25 else " ").join(parts)


def _described(rng: Random, noun: str) -> str:
    return f"{rng.choice(ADJECTIVES)} {noun}" if rng.random() < 0.5 else noun
