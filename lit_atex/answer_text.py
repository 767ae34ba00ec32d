r"""The text of a final answer without what LaTeX and prose add to it; knows no numbers, no values and no verdict.

`clean` leaves LaTeX (what the worker reads), `unwrap` opens text commands (what `answers.read` reads), `compact` is the
spelling in which strings are compared. All take time in proportion to the text, and raise nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

MAX_CHARS = 2000  # of an answer; longer ones are not looked at: no right answer to a problem of this kind is longer

MARKS = str.maketrans(dict.fromkeys("°$€£¥₹", " "))  # units that are single signs; math-verify does not know all

BOX = r"\\{1,2}(?:boxed|fbox|framebox)\s*\{"
BARE_BOX = re.compile(
    r"\\boxed\s*([+-]?[0-9](?:[0-9.,/]*[0-9])?|[A-J])(?![0-9A-Za-z])"
)  # as TeX, which needs no braces
_HASHES = re.compile(r"(?<!#)####(?!#)")
_HEADING = re.compile(
    r"[*_ ]{0,4}(?:(?:step|part|case|phase) ?[0-9]|(?:solution|approach|analysis|plan|conclusion|verification"
    r"|explanation|summary|check|steps|reasoning|proof|lemma|claim|remark|(?:final )?answer)(?![A-Za-z]))",
    re.IGNORECASE,
)  # of Markdown
_ANSWER_IS = re.compile(
    r"\b(?:answer|correct (?:option|choice))(?:\*\*)?\s{0,4}"
    r"(?:is\b(?: (?:as follows|therefore|thus|hence|then)\b,?)?|:)\s{0,4}:?(?:\*\*)?\s{0,4}",
    re.IGNORECASE,
)
_BOLD_END = re.compile(r"(?<=\S)\*\*(?=[ :])")  # of Markdown, which begins before the answer
_NOTHING = re.compile(r"(?:obvious|evident|clear)\b")
ABBREVIATIONS = "e\\.g|i\\.e|cf|vs|approx|resp|Eq|Fig|Mr|Mrs|Ms|Dr|St|Thm|Prop|Lem|Sec|Ch|Ex|Prob"
_ABBREVIATED = re.compile(rf"(?:^|[\s(])(?:{ABBREVIATIONS})\Z")
_SENTENCE_END = re.compile(r"(?<!\.)\.(?=\$?(?:\s|$))\$?")
_DISPLAY = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\begin\{((?:equation|align|gather|multline)\*?)\}(.+?)\\end\{\3\}", re.DOTALL
)
_INLINE_MATH = re.compile(r"\$((?:[^$\\]|\\.)+)\$|\\\((.+?)\\\)")
_NEXT_STEP, _NEXT_LINE = re.compile(r"\\\\ *&? *="), re.compile(r"\\\\(?! *$)")  # of an aligned formula
_REASON = re.compile(r",? (?:because|since)\b|, which\b")
_MORE = re.compile(r"\s*(?:or|and)\s*(?:\$|\\[(\[])")
# Behind a formula that is the answer; whatever else follows belongs to it: "$5$ or $6$", "$5$ more than $10$", "$5$ m".
_HARMLESS = re.compile(r"[*_ ]*[!,;:]?[*_ ]*(?:$|(?:because|since|as(?! well)|by(?= [a-z]))\b)|! ")

_WRITTEN = {
    **{"−": "-", "–": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "π": r"\pi ", "∞": r"\infty ", "×": r"\times "},
    **{"·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne "},
    **{"≈": r"\approx ", "∪": r"\cup ", "∅": r"\emptyset ", "∈": r"\in ", "²": "^2", "³": "^3", "º": "°", "’": "'"},
    **{"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"},
    **{"α": r"\alpha ", "β": r"\beta ", "θ": r"\theta ", "λ": r"\lambda ", "φ": r"\phi ", "ω": r"\omega "},
    **{"…": "...", "˚": "°", "。": ".", "个": " units", "元": " yuan"},
    **{"\u200b": "", "\u2060": "", "\ufeff": ""},  # zero width: nothing to see, nothing reordered
}
_RAISED = re.compile("⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]{2,}|⁻?[⁰¹⁴⁵⁶⁷⁸⁹]|⁻[²³]")  # ² and ³ alone are among the signs above
_LOWERED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_SYMBOLS = str.maketrans(_WRITTEN | {chr(c): chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F)})  # and full width
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_DOLLARS = re.compile(r"(?<!\\)\$")
_INNER = r"((?:[^{}]|\{[^{}]*\})*)"
# (?<!\\) keeps the row separator of a matrix, `\\`, together with what follows it.
_CLEANING = [
    (re.compile(r"(?<=[0-9])(?:\{,\}|,\\! ?|\\!,|\\[,!])(?=[0-9]{3}(?![0-9]))"), ""),  # thousands, as LaTeX sets them
    (re.compile(r"(?<!\\)\\(?:(?:left|right|middle)\.?|[bB]igg?[lrm]?|displaystyle|limits)(?![A-Za-z])"), ""),
    (re.compile(r"(?<!\\)\\!|(?<!\\)\\[()\[\]]"), ""),
    (re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~"), " "),
    (re.compile(r"√ ?(?:\(([^()]*)\)|([0-9]+(?:\.[0-9]+)?|[A-Za-z]+))"), r"\\sqrt{\1\2}"),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(rf"(?:^|\{{){_INNER}\\over(?![A-Za-z]){_INNER}(?:\}}|$)"), r"\\frac{\1}{\2}"),
    (re.compile(rf"(?:^|\{{){_INNER}\\choose(?![A-Za-z]){_INNER}(?:\}}|$)"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\\\ ?\[ ?-?[0-9.]+ ?(?:pt|em|ex|[cm]m)\]"), r"\\\\"),  # a row's distance from the next
    (re.compile(r"\\frac ?([0-9]) ?([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac ?([0-9]) ?\{"), r"\\frac{\1}{"),
    (re.compile(r"\\frac\{([0-9]{1,20})\} ?([0-9])(?![0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\binom ?([0-9A-Za-z]) ?([0-9A-Za-z])(?![0-9A-Za-z])"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\sqrt ?([0-9]+)"), r"\\sqrt{\1}"),  # TeX takes one digit; who writes two means both
    (re.compile(r"(?:\{\} ?)?\^ ?(?:\{ ?)?\\circ(?: ?\})?|\\(?:text)?degree(?![A-Za-z])"), "°"),
    (re.compile(r"\\(?:varnothing|O)(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"\\([lgn]e)(?:q|qslant)(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"^\(([0-9]+)\)(?= ?_ ?\{?[0-9])"), r"\1"),
    (re.compile(r"(?<=[0-9])_ ?\{([0-9]+)\}"), r"_\1"),  # the base of a number
    (re.compile(r"\\pmod ?\{([^{}]*)\}"), r"\\pmod \1"),
    (re.compile(r"\\(vec|hat|bar) ([A-Za-z])(?![A-Za-z])"), r"\\\1{\2}"),
    (re.compile(r"\\(?:text)?color ?\{[a-z]+\}"), ""),
    (re.compile(r"\\ldots(?![A-Za-z])"), r"\\dots "),
    (re.compile(r"\\langle(?![A-Za-z])"), "("),
    (re.compile(r"\\rangle(?![A-Za-z])"), ")"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
]
_BOLD_PART = re.compile(r"(?:^|(?<= ))\*\*([^* ][^*]*)\*\*(?=[ :,])|(?<=[a-z,] )\*\*([^* ][^*]*)\*\*$")  # of Markdown
_THOUSANDS = re.compile(r"(?:^|(?<==)|(?<== ))[+-]?[$€£¥₹]? ?[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_SPACED_THOUSANDS = re.compile(r"(?:^|(?<==)|(?<== ))[+-]?[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")
_LIST_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_SHAPE = r"(?<!\\)\\(?:bf|it|rm|sf|tt|em|sl)(?![A-Za-z]) ?"  # as TeX sets it: what follows in the group
_SHAPED = re.compile(rf"(?<![A-Za-z}}\]^_])\{{ ?{_SHAPE}([^{{}}]*)\}}|{_SHAPE}\{{([^{{}}]*)\}}")
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf)|[mh]box|operatorname|boldsymbol|bm|pmb|emph) ?"
    r"\{([^{}]*)\}"
)
_BOLD = re.compile(rf"{_SHAPE}|(?<!\\)\\(?:textbf|mathbf|boldsymbol|bm|pmb)(?![A-Za-z]) ?")  # around more than text
_CELSIUS = re.compile(r" ?(?:°|degrees?) ?([cf])(?:elsius|ahrenheit)(?![A-Za-z])|(?-i:° ([CF])$)", re.IGNORECASE)
_FUNCTION = re.compile(
    r"(?<![\\A-Za-z])(ln|log|sin|cos|tan|cot|csc|arcsin|arccos|arctan)(?= ?[(0-9_^\\]| [a-z](?![A-Za-z]))"
)
_EXP = re.compile(r"(?:\\|(?<![A-Za-z]))exp ?\(([^()]*)\)")
_PLAIN = re.compile(r"(?<![\\A-Za-z])(pi|infty)(?![A-Za-z])")
_LOOSE_SPACE = re.compile(r"(?<![A-Za-z0-9.]) | (?![A-Za-z0-9.+-])")  # the others keep apart: `1 2`, `1 -2`, `\pi r`
_LABEL = re.compile(r"(?:option |choice )?(?:\(([A-J])\)|([A-J])[).:])[.:]?(?: (?![(\[])(.*))?", re.IGNORECASE)
_HEDGE = re.compile(  # `(A) or (B)` is no choice, nor is `(A) is wrong`, or `A. B C`
    r"^(?:or|and|but|although|though|not [A-J]|nor|as well|maybe|perhaps|possibly|also|isn't|is not)\b|^[,;&/+]"
    r"|\([A-J]\)|(?:^| )[A-J][).:]|\b(?:wrong|incorrect)\b"
    r"|(?-i:(?:^|[ ,])[A-J](?:,| and| or| &)* ?(?<![A-Z])[A-J]\b|^[A-J]$)",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"(?:option|choice) ([A-J])", re.IGNORECASE)
_PLUS_MINUS, _MINUS_PLUS = re.compile(r"\\pm(?![A-Za-z])"), re.compile(r"\\mp(?![A-Za-z])")  # not \pmod, \pmatrix
# In a text command these are units; alone they may be variables. Their names tell them apart.
_UNITS = {
    **{"m": "meter", "g": "gram", "s": "second", "h": "hour", "L": "liter", "N": "newton", "J": "joule", "W": "watt"},
    **{"V": "volt", "A": "ampere", "K": "kelvin", "C": "celsius", "F": "fahrenheit"},
}


def clean(text: str) -> str:
    """Drop what adds no meaning; "" for what nobody could read: control characters, bidi marks, too long."""
    if len(text) > MAX_CHARS:
        return ""
    if not text.isascii():
        text = _RAISED.sub(lambda raised: f"^{{{raised[0].translate(_LOWERED)}}}", text).translate(_SYMBOLS)
        if any(unicodedata.category(char) in ("Cf", "Cs", "Co", "Cn") for char in text):
            return ""
    if _CONTROL.search(text):
        return ""
    text = " ".join(text.split())
    if len(_DOLLARS.findall(text)) % 2 == 0:
        text = _DOLLARS.sub("", text)  # around mathematics; a single one is money
    text = text.replace(r"\$", "$").replace("<=", r"\le ").replace(">=", r"\ge ").replace("...", r"\dots ")
    if any(char in text for char in "\\√~{_"):
        for pattern, replacement in _CLEANING:
            text = pattern.sub(replacement, text)
    text = " ".join(text.split()).strip('`" ').rstrip(" .,;\\:")
    text = _BOLD_PART.sub(r"\1\2", text)
    if text.startswith(("**", "__")):
        text = text.strip("*_ ").rstrip(" .")
    if "," in text and _THOUSANDS.search(text):
        return _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    if _SPACED_THOUSANDS.fullmatch(text):
        return text.replace(" ", "")
    return _LIST_THOUSANDS.sub("", text) if ", " in text else text


def unwrap(text: str) -> str:
    """A cleaned text without its text commands, and with pi and infinity as LaTeX writes them."""
    if "\\" in text:
        text = _SHAPED.sub(r"\\text{\1\2}", text)
        for _ in range(2):  # \textbf{\text{A}}
            text = _TEXT.sub(_opened, text)
        text = _BOLD.sub("", text)
    if "exp" in text:
        text = _EXP.sub(r"e^{\1}", text)
    text = _FUNCTION.sub(r"\\\1", _CELSIUS.sub(lambda degrees: f" °{(degrees[1] or degrees[2]).upper()}", text))
    text = _PLAIN.sub(r"\\\1 ", text.replace("infinity", "infty"))
    return " ".join(text.split()).replace(" ^", "^").rstrip(" .")  # \text{ cm}^2, \text{Yes.}


def compact(text: str) -> str:
    """The spelling that strings are compared in."""
    return _LOOSE_SPACE.sub("", text)


def is_words(text: str) -> bool:
    """Whether there are letters, and nothing but letters and what stands between words."""
    return any(map(str.isalpha, text)) and all(char.isalpha() or char in " ,;'" for char in text)


def signs(parts: list[str]) -> list[str]:
    r"""The parts, each that has a single `\pm` once with either sign, and `\mp` with the other one."""
    return [
        _MINUS_PLUS.sub(other, _PLUS_MINUS.sub(sign, part))
        for part in parts
        for sign, other in (("+-", "-+") if len(_PLUS_MINUS.findall(part)) == 1 else ((r"\\pm", r"\\mp"),))
    ]


def label(text: str) -> tuple[str, str]:
    """The letter of a choice, in upper case, and what follows it: `(B) 12`, `B. twelve`, `Option C`; "" without one."""
    found = _LABEL.fullmatch(text)
    if found and not _HEDGE.search(found[3] or ""):
        return (found[1] or found[2]).upper(), (found[3] or "").strip()
    choice = _CHOICE.fullmatch(text)
    return (choice[1].upper(), "") if choice else ("", text)


def _opened(command: re.Match[str]) -> str:
    inside = command[1].strip()
    return f" {_UNITS[inside] if command.start() and inside in _UNITS else inside} "


def after_hashes(text: str) -> Iterator[tuple[int, str]]:
    """Where each `#### ...` stands, and what stands on its line; headings of Markdown left out."""
    for hashes in _HASHES.finditer(text):
        line = text[hashes.end() : hashes.end() + MAX_CHARS + 1].partition("\n")[0]
        if not _HEADING.match(line):
            yield hashes.start(), line


def after_answer_is(text: str) -> Iterator[tuple[int, str]]:
    """Where each "the answer is ..." stands, and what it says to the end of its sentence, or of its display."""
    for phrase in _ANSWER_IS.finditer(text):
        rest = text[phrase.end() : phrase.end() + MAX_CHARS + 1]
        if _NOTHING.match(rest):
            continue
        display = _DISPLAY.match(rest)
        math = display or _INLINE_MATH.match(rest.partition("\n")[0])
        said = math[0] if math else ""
        behind = _sentence(rest[len(said) :].partition("\n")[0])
        if display and not behind.strip() and _MORE.match(rest, len(said)):
            behind = " " + " ".join(rest[len(said) :].split())
        if math and (_HARMLESS.match(behind) or said.rstrip("$)]\\").endswith(".")):
            said, behind = next(filter(None, math.groups()[:2]), "") or _aligned(math[4]), ""
        elif reason := _REASON.search(behind):
            behind = behind[: reason.start()]
        said += behind
        bold = _BOLD_END.search(said) if phrase[0].rstrip().endswith("**") else None
        yield phrase.start(), said[: bold.start()] + said[bold.end() :] if bold else said.removesuffix("**")


def _sentence(line: str) -> str:
    ends = (end for end in _SENTENCE_END.finditer(line) if not _ABBREVIATED.search(line[: end.start()]))
    return next((line[: end.end()].removesuffix(".") for end in ends), line)


def _aligned(rows: str) -> str:
    """The rows of an environment as one line: a chain where they go on with an equals sign, else a list."""
    if r"\begin" in rows:
        return rows
    return _NEXT_LINE.sub(", ", _NEXT_STEP.sub(" =", " ".join(rows.split()))).replace("&", "")
