r"""One way to write what LaTeX, Markdown, plain text and Unicode write in several.

`canonical` keeps what an answer means and drops how it looks: `\left(\tfrac12,\,\text{cm}\right)`
and `( ½, cm)` come out alike. Powers, brackets, relations and signs stay; they mean something.
"""

import re
import unicodedata

_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d"), "-")
_PLAIN = str.maketrans({**_INVISIBLE, **_DASHES})
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SYMBOLS = {
    "\u00d7": r"\times ",
    "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ",
    "\u00f7": r"\div ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u2260": r"\ne ",
    "\u2248": r"\approx ",
    "\u00b1": r"\pm ",
    "\u221e": r"\infty ",
    "\u03c0": r"\pi ",
    "\u03b8": r"\theta ",
    "\u222a": r"\cup ",
    "\u2229": r"\cap ",
    "\u2208": r"\in ",
    "\u2205": r"\emptyset ",
    "\u2192": r"\to ",
    "\u2026": r"\ldots ",
    "\u2236": ":",
    "\u00ba": "\u00b0",
    "\u2220": r"\angle ",
}
_SAME = {  # commands, without their backslash, and what is written for them
    **dict.fromkeys(("leq", "leqslant", "leqq"), r"\le "),
    **dict.fromkeys(("geq", "geqslant", "geqq"), r"\ge "),
    "lt": "<",
    "gt": ">",
    "neq": r"\ne ",
    **dict.fromkeys(("dots", "cdots", "ldots"), r"\ldots "),
    **dict.fromkeys(("varnothing", "empty"), r"\emptyset "),
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), r"\frac"),
    **dict.fromkeys(("dbinom", "tbinom"), r"\binom"),
    **dict.fromkeys(("rightarrow", "implies", "Rightarrow", "longrightarrow"), r"\to "),
    "colon": ":",
    "pounds": "\u00a3",
    "euro": "\u20ac",
    "lbrace": r"\{",
    "rbrace": r"\}",
    "lbrack": "[",
    "rbrack": "]",
    "mid": "|",
    "vert": "|",
    "lvert": "|",
    "rvert": "|",
    "degree": "\u00b0",
    "degrees": "\u00b0",
    "varphi": r"\phi ",
    "simeq": r"\approx ",
    "land": r"\text{ and }",
    "lor": r"\text{ or }",
}
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_LOOKS = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|tiny|small|normalsize"
    r"|large|Large|LARGE|huge|Huge|bf|it|rm|boldmath|centering|noindent|phantom\s*\{[^{}]*\}"
    r"|[hv]space\*?\s*\{[^{}]*\}|color\s*\{[^{}]*\}|tag\*?\s*\{[^{}]*\})(?![A-Za-z])\.?"
)
_COLOURED = re.compile(r"\\(?:textcolor|colorbox)\s*\{[^{}]*\}\s*(?=\{)")
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|textsf|texttt|mathrm|mathbf|mathit|mathsf|mathtt"
    r"|mbox|hbox|emph|underline|operatorname\*?|boldsymbol|bm)\s*\{([^{}]*)\}"
)
_THIN = re.compile(r"(?<=\d)\s*(?:\\[,!;: ]|\{,\}|\{\\,\}|~)+\s*(?=\d{3}(?!\d))")
_SPACE = re.compile(r"\\[,!;:> ]|\\q?quad(?![A-Za-z])|~|\s+")
_BRACED_ATOM = re.compile(r"\{([A-Za-z0-9])\}")
_DEGREES = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))")
_HALF_DAY = re.compile(r"(?<=\d)\s*([AaPp])(?:\.\s?[Mm]\.?|[Mm])(?![A-Za-z])")
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{([^{}]*)\}")
_POWER_OF_STARS = re.compile(r"(?<=[\w)}])\*\*(?=[\w({\\-])")
_ROOT_CALL = re.compile(r"(?<![A-Za-z\\])\\?sqrt\s*\(([^()]*)\)")
_NAMES = re.compile(
    r"(?<![A-Za-z\\])(pi|sqrt|sin|cos|tan|log|ln|exp|infinity|theta|alpha|beta)(?![A-Za-z])"
)
_NEGATIVE = re.compile(r"\b(?:negative|minus)\s+(?=[\d$\\.])", re.IGNORECASE)


def plain(text: str) -> str:
    """Remove characters that cannot be seen; write one kind of minus, and a short am or pm."""
    return _HALF_DAY.sub(lambda m: f" {m[1].lower()}m", text.translate(_PLAIN))


def canonical(text: str) -> str:
    """Write an answer in canonical form: equal answers, written in different ways, become alike.

    Args:
        text: An answer alone: what a box holds, or a reference.
    """
    text = _replace_unicode(plain(text))
    text = _THIN.sub("", text.replace(r"\$", "\0"))
    if text.count("$") % 2 == 0:
        text = text.replace("$", " ")  # delimiters
    text = text.replace("\0", "$")
    text = text.replace(r"\\", "\0")  # the end of a line, until spaces are gone
    text = re.sub(r"\\[()\[\]]", " ", text).replace(r"\!", "")
    text = _BOX.sub(r" \1 ", _COLOURED.sub("", text))
    text = _DEGREES.sub("\u00b0", _LOOKS.sub(" ", text))
    for _ in range(3):  # one style in another
        text = _TEXT.sub(r" \1 ", text)
    text = _COMMAND.sub(lambda m: _SAME.get(m[1]) or m[0], text)
    text = text.replace(r"\%", "%").replace("`", "").replace("{,}", ",").replace("\u2044", "/")
    text = _ROOT_CALL.sub(r"\\sqrt{\1}", text)
    text = _NAMES.sub(lambda m: r"\infty " if m[1] == "infinity" else f"\\{m[1]} ", text)
    text = _POWER_OF_STARS.sub("^", text)
    text = _NEGATIVE.sub("-", text.replace("...", r"\ldots "))
    text = text.replace(">=", r"\ge ").replace("<=", r"\le ").replace("!=", r"\ne ")
    text = _add_braces(_SPACE.sub(" ", text)).replace("\0", r"\\")
    text = _HALF_DAY.sub(lambda m: f" {m[1].lower()}m", text)
    text = re.sub(r"\s+", " ", text).strip(" *_,;:").rstrip(" .").removeprefix("\\\\")
    while text.startswith("{") and _find_closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _replace_unicode(text: str) -> str:
    text = re.sub("[⁰¹²³⁴-⁹⁺⁻ⁿ]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub("[₀-₉]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = re.sub("√\\s*\\(([^()]*)\\)", r"\\sqrt{\1}", text)
    text = re.sub("√\\s*(\\d+|[A-Za-z])", r"\\sqrt{\1}", text)
    text = re.sub("[¼-¾⅐-⅞]", lambda m: " " + unicodedata.normalize("NFKC", m[0]) + " ", text)
    text = re.sub("(?<=\\d)[\u00a0\u2009\u202f](?=\\d{3}(?!\\d))", "", text)
    text = "".join(_SYMBOLS.get(character, character) for character in text)
    return unicodedata.normalize("NFKC", text)


def _add_braces(text: str) -> str:
    r"""Write `\frac12` and `\sqrt2` with the braces that TeX implies, `x^{2}` without them."""
    pieces, rest = [], text
    while match := re.search(r"\\(frac|binom|sqrt)(?![A-Za-z])", rest):
        pieces.append(rest[: match.end()])
        rest = rest[match.end() :].lstrip()
        if match[1] == "sqrt" and rest.startswith("["):
            root, bracket, rest = rest.partition("]")
            pieces.append(root + bracket)
            rest = rest.lstrip()
        for _ in range(1 if match[1] == "sqrt" else 2):
            token = re.match(r"\d|[A-Za-z]|\\[A-Za-z]+", rest)
            if token and token[0] not in (r"\frac", r"\binom", r"\sqrt"):
                pieces.append(f"{{{token[0]}}}")
                rest = rest[token.end() :].lstrip()
            elif rest.startswith("{") and (end := _find_closing(rest, 0)) > 0:
                pieces.append("{" + _add_braces(rest[1:end].strip()) + "}")
                rest = rest[end + 1 :]
            else:
                break
    whole = "".join(pieces) + rest
    return re.sub(r"(?<=[\^_])\s*\{\s*(\w)\s*\}", r"\1", whole)


def _find_closing(text: str, start: int) -> int:
    """Find where the brace that opens at a place is closed; -1 for nowhere."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "\\":
            continue
        if place and text[place - 1] == "\\":
            continue
        depth += (text[place] == "{") - (text[place] == "}")
        if not depth:
            return place
    return -1
