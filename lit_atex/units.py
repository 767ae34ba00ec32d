"""Units behind a number: one key for every spelling; knows no numbers, and converts nothing."""

from __future__ import annotations

import re

_SPELLINGS = """
    m meter metre; cm centimeter centimetre; mm millimeter millimetre; km kilometer kilometre; dm decimeter decimetre
    in inch inches; ft foot feet; yd yard; mi mile; g gram gramme; kg kilogram kilo; mg milligram; lb pound lbs
    oz ounce; ton tonne; L l liter litre; mL ml milliliter millilitre; cL cl; gal gallon; s sec second; ms millisecond
    min minute mins; h hr hour hrs; day; week wk; month; year yr; Hz hertz; kHz; MHz; N newton; kN; J joule; kJ
    cal calorie; kcal; W watt; kW kilowatt; MW; V volt; A amp ampere; mA; ohm; K kelvin; Pa pascal; kPa; mol mole
    rad radian; deg ° degree degs; degC °C celsius; degF °F fahrenheit; usd $ dollar buck; ct cent ¢; eur € euro
    gbp £; jpy ¥ yen; inr ₹ rupee; am a.m. a.m; pm p.m. p.m; mi/h mph; km/h kmh kph; m/s mps; person people; man men
    child children; woman women; sheep; fish; deer; mouse mice; tooth teeth; goose geese
    yuan rmb; Mg megagram; Mm megameter; cat; dog; hat; egg; pen; cow; box; bag; cup; can; way; car; boy; row; ppl; pt
    eV; keV; MeV; GeV; nm nanometer nanometre; erg; atm; dB decibel; pc parsec; kpc; Mpc; AU; MPa; GPa; kWh; ppm; ppb
"""
CURRENCIES = frozenset(("usd", "eur", "gbp", "jpy", "inr", "yuan", "ct"))  # among the keys
_NAMES = {name: names[0] for names in map(str.split, re.split(r"[;\n]", _SPELLINGS)) for name in names}
_LONE = frozenset("mgshLNJWV")  # single letters that stand for a unit rather than a variable
_SPACED = frozenset(("nm", "pc", "eV", "AU"))  # without a space a product of letters
_EXACT = frozenset(("nm", "pc", "ml", "ms", "mg", "mm"))  # in capitals other units, or letters: Nm, Ms, ML^2
_RUN_TOGETHER = re.compile(r"(?<![A-Za-z])(?:N(?=m(?![A-Za-z]))|m(?=s\^\{?-))")  # Nm, ms^{-1}
_VOLUMES = frozenset(("mL", "cL", "L", "gal"))  # which nobody squares: in mL^2 a mass and a length
_NOT_UNITS = re.compile(
    r"(?:not|or|and|is|are|to|from|than|about|sqrt|times|plus|minus|over|divided|half|halfs|halves|third|thirds|fourth"
    r"|quarter|base|mod|modulo|choose|factorial|remainder|negative|hundreds?|thousands?|[a-z]+illions?"
    r"|dozens?|tens|score|lakhs?|crores?|grand|infinity|where|with|when|if|for|except|maybe|[a-z]+ths?|squared|cubed"
    r"|permille|mille|basis|percent(?:s|age)?|nano|micro|milli|centi|deci|deca|hecto|mega|giga|tera|pico|double|triple"
    r"|quadruple|gross|more|less|fewer|undefined|false|true|impossible|below|above|under|none|never"
    r"|root|zero|binary|octal|decimal|hexadecimal|[a-z]+ly|either|neither|versus|while|also|cannot|oder|only|just|even"
    r"|perhaps|always|sometimes|besides|instead|rather|then|than|that|this|which|would|could|should|might|because|since"
    r"|although|though|unless|until|wrong|incorrect|correct|invalid|unknown|equals|becomes|remains|seems|means|repeats"
    r"|fails|excludes|includes|overcounts|contradicts"
    r"|repeating|recurring|rounded|halved|doubled|tripled|doubles|triples|gives|comes|makes|goes|does|into|each|both"
    r"|(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]+teen|(?:twen|thir|for|fif|six|seven|eigh|nine)t)"
    r"(?:s|es|y|ies)?)",
    re.IGNORECASE,
)
_SHORT = ("red", "big", "odd", "old", "new")  # adjectives; others have four letters
_OF = re.compile(r"(?<=[a-z])(?<!cent)(?<!quarters) of ([a-z]{3,})(?: ([a-z]{3,}))?(?= per |$)")  # cups of tea
_TRAILING = re.compile(
    r"(?:^|(?<!cent) )(?:left|in total|total|altogether|each|old|tall|long|wide|high|deep|more|remaining|away|later"
    r"|times(?: as [a-z]+)?)$"
)
_PLURAL = re.compile(r"[A-Za-z]+(?<![usi])s", re.IGNORECASE)
_PARTICIPLE = re.compile(r"[A-Za-z]+(?:ed|ing)", re.IGNORECASE)
_SHAPE = re.compile(r"[A-Za-z°.$€£¥₹¢]+(?:(?: ?[/*] ?| )[A-Za-z.]+|\^\{?-?[1-9]\}?){0,7}")
_PIECE = re.compile(r"[A-Za-z°$€£¥₹¢.]+|/|\^\{?(-?[1-9])\}?")


def key(text: str, spaced: bool = True, plural: bool = True) -> str | None:
    """The unit that a text names, e.g. `m/s` of "metres per second"; "" for mere "units"; None if it is no unit.

    Args:
        text: What follows the number.
        spaced: Whether a space or a text command set it apart; if not, only known units of two letters or more count.
        plural: Whether a noun that is not known must be in the plural, as behind any number but one and its parts.
    """
    text = _RUN_TOGETHER.sub(r"\g<0> ", " ".join(text.replace(r"\cdot", " ").split()))
    if spaced:
        text = _TRAILING.sub("", text)
        if not text:
            return ""
    of = _OF.search(text)
    if of and not any(word and _NOT_UNITS.fullmatch(word) for word in of.groups()):
        text = text[: of.start()] + text[of.end() :]
    if len(text) > 60 or not _SHAPE.fullmatch(text):
        return None
    powers: dict[str, int] = {}
    sign, next_power, last, unknown, noun = 1, 1, "", 0, True
    for piece in _PIECE.finditer(text):
        word = piece[0]
        if word == "/" or word == "per":
            sign = -1
        elif piece[1]:
            if not last or (last in _VOLUMES and "-" not in piece[1]):
                return None
            powers[last] *= int(piece[1])
        elif word.lower() in ("square", "sq", "sq.", "cubic"):
            next_power = 3 if word.lower() == "cubic" else 2
        elif word.lower() in ("squared", "cubed") and last:
            powers[last] *= 2 if word.lower() == "squared" else 3
        else:
            named = _name(word)
            if named is None:
                unknown += 1
                if not spaced or unknown > 2 or (len(word) < 4 and word not in _SHORT) or not word.isalpha():
                    return None
                if _NOT_UNITS.fullmatch(word):
                    return None
                noun = bool(_PLURAL.fullmatch(word)) or ((sign < 0 or not plural) and not _PARTICIPLE.fullmatch(word))
                named = _singular(word.lower())
            elif (len(word) == 1 and word.isalpha() and word not in _LONE) or (not spaced and word in _LONE | _SPACED):
                return None
            else:
                noun = True
            above, _, below = named.partition("/")
            powers[above] = powers.get(above, 0) + sign * next_power
            if below:
                powers[below] = powers.get(below, 0) - sign * next_power
            sign, next_power, last = 1, 1, above
    if not noun:  # an adjective alone
        return None
    if powers.get("unit") == 1:
        del powers["unit"]
    return " ".join(f"{unit}^{power}" if power != 1 else unit for unit, power in sorted(powers.items()))


def _name(word: str) -> str | None:
    for spelling in (word, word.rstrip("."), word.lower()):
        if spelling in _NAMES and (spelling == word or spelling not in _EXACT):
            return _NAMES[spelling]
        if len(spelling) > 3 and spelling.endswith("s") and spelling[:-1] in _NAMES:
            return _NAMES[spelling[:-1]]
    return None


def _singular(word: str) -> str:
    for ending, singular in (("ies", "y"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("ss", "ss"), ("s", "")):
        if word.endswith(ending) and len(word) > 4:
            return word.removesuffix(ending) + singular
    return word
