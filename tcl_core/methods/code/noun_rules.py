"""Nouns of English captions without a tagger: closed classes of words, endings, and the place in a phrase.

A word is a noun unless a list or an ending says otherwise; a word that could be a verb or an adjective is one where it
ends a phrase that an article began ("the running dog" but "a painting"). Captions are short and plain, so that this
goes far; it does not know verbs outside its list.
"""

from __future__ import annotations

import re

__all__ = ["nouns_by_rules"]

_TOKEN = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|[^\w\s]|\w+")

_ARTICLES = frozenset(
    "a an the this that these those my your his her its our their some any no every each another both either neither "
    "all many several few more most other such what which whose".split()
)
_FUNCTION_WORDS = _ARTICLES | frozenset(
    "about above across after against along among amid around as at before behind below beneath beside besides between "
    "beyond but by despite down during except for from in inside into like near next nearby of off on onto opposite out "
    "outside over past per through throughout to together toward towards under underneath until up upon via with within "
    "without and or nor so yet if because while when where who whom whichever whether though although than then there "
    "here i you he she it we they me him us them mine yours hers ours theirs myself yourself himself herself itself "
    "themselves someone somebody something anyone anything everyone everybody everything nobody nothing one ones "
    "am is are was were be been being do does did done doing have has had having can could may might must shall should "
    "will would not never always often sometimes very too quite rather just only also even still already again ago away "
    "back forward apart almost alone much lot lots else how why ever once twice everywhere somewhere anywhere nowhere "
    "upstairs downstairs indoors outdoors overhead please let lets".split()
)
_NUMBERS = frozenset(
    "two three four five six seven eight nine ten eleven twelve dozen hundred thousand million first second third "
    "fourth fifth last half".split()
)
_ADJECTIVES = frozenset(
    "red orange yellow green turquoise blue purple pink brown black grey gray white golden silvery beige violet crimson "
    "scarlet teal navy maroon tan cream dark bright light pale colorful colourful vivid shiny glossy matte clear "
    "small little tiny miniature large big huge giant enormous great long short tall high low wide narrow thick thin "
    "fat slim deep shallow round square flat curved straight sharp blunt smooth rough soft hard heavy full empty open "
    "closed old young new modern ancient vintage antique classic traditional fresh rotten ripe raw hot cold warm cool "
    "wet dry dirty clean messy neat tidy broken whole plain striped spotted checked zigzag speckled patterned wooden "
    "woolen metallic leafy grassy sandy snowy rainy sunny cloudy foggy rocky muddy dusty beautiful pretty lovely cute "
    "ugly nice good bad best better worst fine happy sad angry funny serious busy quiet loud calm rich poor cheap "
    "expensive free own same different various similar single double triple several main left right upper lower front "
    "rear top middle central final early late recent daily urban rural suburban domestic wild tame male female adult "
    "human american european asian african english french german italian chinese japanese indian british northern "
    "southern eastern western public private local national international royal religious famous popular typical "
    "special real fake artificial natural electric electronic digital historic historical medieval tropical "
    "decorative abstract simple complex fancy elegant luxurious cozy comfortable delicious tasty sweet sour spicy "
    "healthy professional casual formal blurry rusty fluffy furry hairy bald barefoot asleep awake alive dead afraid "
    "ready able available".split()
)
_VERBS = frozenset(
    "run ride walk sit stand lie lay hang hold carry wear eat drink look watch see show play jump swim fly drive park "
    "wait talk speak smile laugh cry sleep rest lean kneel climb ski surf skate swing throw catch kick hit pull push "
    "lift drop put place take get give make bake cook cut chop pour fill cover surround face pose perform read write "
    "draw paint sing dance work use enjoy prepare serve sell buy feed pet brush wash clean graze chase follow lead "
    "cross enter leave pass travel sail float row land take go come move turn stop start begin end stay live grow bloom "
    "shine glow burn hide peek stare gaze point wave reach touch feel hear smell taste think know say tell ask call "
    "want need love help try seem appear become contain include feature depict decorate display sniff bite lick chew "
    "fall rise set spread scatter gather line stack pile fold tie wrap attach connect build fix repair check inspect "
    "celebrate attend visit arrive depart explore discover compete race train practice".split()
)
_IRREGULAR = frozenset(
    "ran rode ridden sat stood lain laid hung held wore worn ate eaten drank drunk seen saw swam flew flown drove driven "
    "spoke slept threw thrown caught took taken got gotten gave given made cut put wrote written drew drawn sang sung "
    "sold bought fed led left went gone came stopped began begun grew grown shone hid hidden felt heard thought knew "
    "known said told became fell fallen rose risen spread built tied lying tying dying laying".split()
)
_NOUNS_IN_ING = frozenset(
    "thing something anything building ceiling clothing evening morning wedding painting drawing king ring string wing "
    "spring sling railing awning icing frosting pudding dumpling duckling gosling sibling earring lightning crossing "
    "landing parking living dining swimming wing bling topping dressing stuffing seating lighting flooring siding".split()
)
_NOUNS_IN_ED = frozenset("bed seed weed shed sled reed steed speed feed bobsled flatbed seabed hundred".split())
_NOUNS_IN_LY = frozenset("fly butterfly dragonfly firefly lily family belly jelly assembly ally bully holly".split())
_ING_AS_NOUNS = re.compile(r"(?:.*ings)$")


def nouns_by_rules(caption: str) -> list[str]:
    """Nouns of a caption, in its order and spelling.

    Example:
        >>> nouns_by_rules("A brown dog runs on the green grass near a wooden fence.")
        ['dog', 'grass', 'fence']
        >>> nouns_by_rules("a painting of two running horses")
        ['painting', 'horses']
    """
    words = _TOKEN.findall(caption)
    kinds = [_kind(word.lower()) for word in words]
    found, in_phrase = [], False
    for place, (word, kind) in enumerate(zip(words, kinds, strict=True)):
        ends_phrase = place + 1 == len(words) or kinds[place + 1] in ("function", "sign")
        if kind == "noun" or (kind in ("adjective", "verb") and in_phrase and ends_phrase):
            found.append(word)
        if kind in ("function", "sign"):
            in_phrase = word.lower() in _ARTICLES
        elif kind == "noun" or ends_phrase:
            in_phrase = False
    return found


def _kind(word: str) -> str:
    """``function``, ``sign``, ``adjective``, ``verb`` or ``noun``, of a lower-case word by itself."""
    if not word[0].isalpha():
        return "adjective" if word[0].isdigit() else "sign"
    if word in _FUNCTION_WORDS:
        return "function"
    if word in _ADJECTIVES or word in _NUMBERS:
        return "adjective"
    if word in _NOUNS_IN_ING or word in _NOUNS_IN_ED or word in _NOUNS_IN_LY or _ING_AS_NOUNS.match(word):
        return "noun"
    if word in _IRREGULAR or _is_verb(word):
        return "verb"
    if word.endswith("ing") and len(word) > 5:
        return "verb"
    if word.endswith("ed") and len(word) > 4:
        return "verb"
    if word.endswith("ly") and len(word) > 4:
        return "function"
    return "noun"


def _is_verb(word: str) -> bool:
    """Whether a word is a listed verb, or its third person."""
    forms = (word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ies") + "y")
    return any(form in _VERBS for form in forms)
