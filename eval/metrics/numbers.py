"""The last number of a text as an exact value, whatever its notation.

Values compare exactly: two integers of 400 digits are equal only if all of their digits are. No
value is ever expanded, so `1e999999999` costs nothing.
"""

import re
import unicodedata
from collections import deque
from fractions import Fraction

Value = tuple[object, ...]
"""Equal for equal numbers: a decimal as sign, digits and exponent; else a fraction or a time."""

MAX_FRACTION_DIGITS = 400

_MINUS = "-\u2212\u2013\uff0d"
_SPACE = " \u00a0\u2009\u202f"
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_FRACTION = re.compile(
    r"""
    (?P<space>\s{0,2})(?:
        (?P<sign>[\u00bc-\u00be\u2150-\u215e])
      | \\[dt]?frac\s*\{\s*(?P<top>[-\u2212]?\d+)\s*\}\s*\{\s*(?P<bottom>\d+)\s*\}
      | \\[dt]?frac(?P<first>\d)(?P<second>\d)
    )
    """,
    re.VERBOSE,
)
_WIDE = str.maketrans("\uff0e\u066b\u066c\uff0f\uff1a\uff3e", "..,/:^")
_GROUPS = re.compile(r"(?<=\d)(?:\{,\}|\uff0c)(?=\d{3}(?!\d))")

_PLAIN = rf"""(?:
    \d{{1,3}}(?:\.\d{{3}})+,\d+(?!\d|[.,]\d)                     # 1.234,56
  | \d{{1,3}}(?:\.\d{{3}}){{2,}}(?!\d|[.,]\d)                    # 1.234.567
  | [1-9]\d{{0,2}}(?:,\d{{3}})+(?!\d|,\d)(?:\.\d+)?              # 1,234.5
  | [1-9]\d?(?:,\d{{2}})+,\d{{3}}(?!\d|,\d)(?:\.\d+)?            # 12,34,567
  | [1-9]\d{{0,2}}(?:[{_SPACE}]\d{{3}})+(?![\w-])(?:[.,]\d+)?    # 1 234
  | [1-9]\d{{0,2}}(?:['\u2019_]\d{{3}})+(?!\d)(?:\.\d+)?         # 1'234
  | (?<![\d.,])\d+,\d+(?!\d|[.,]\d)                              # 3,5
  | \d+(?:\.\d+(?!\.\d))?
  | (?<!\d)\.\d+
)"""
_EXPONENT = rf"""(?:
    \^\{{?(?P<caret>[+{_MINUS}]?\d{{1,9}})\}}?|(?P<raised>[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{{1,9}})
)"""
_TIMES_TEN = r"\s?(?:[\u00d7x*\u00b7]|\\times|\\cdot)\s?10"
_NUMBER = re.compile(
    rf"""
    (?:(?<!\w)(?P<sign>[{_MINUS}])(?:\\?[$€£¥₹][{_SPACE}]?)?)?   # 5-3 is 5 and 3
    (?:
        (?P<time>\d+(?::\d+)+)                                   # 12:30, and ratios
      | (?P<unit>\^\{{?[+{_MINUS}]?\d+)                          # of m^2: no number
      | (?:(?P<ten>{_PLAIN}){_TIMES_TEN}|(?P<base>{_PLAIN})){_EXPONENT}
      | (?<![\d/])(?P<whole>\d+)[{_SPACE}](?P<part>\d+)/(?P<parts>\d+)(?![/\d])
      | (?<!/)(?P<top>{_PLAIN})[{_SPACE}]?/[{_SPACE}]?(?P<bottom>{_PLAIN})
        (?!\d|[{_SPACE}]?/[{_SPACE}]?\d)
      | (?P<plain>{_PLAIN})(?:[eE](?P<e>[+{_MINUS}]?\d{{1,9}})(?!\w))?
    )
    """,
    re.VERBOSE,
)


def last_number(text: str) -> Value | None:
    """The value of the last number in a text; None if it has none.

    A comma or a space between groups of three digits groups, a single other comma is a decimal
    comma, and of a list such as 1,2,3 the last number counts. `3/2` is a fraction and `1 1/2` a
    mixed number; `12:30` equals `12:30` alone.
    """
    text = _GROUPS.sub(",", text.translate(_WIDE))
    text = _FRACTION.sub(_spelled_out, text)
    numbers = (match for match in _NUMBER.finditer(text) if not match["unit"])
    found = deque(numbers, maxlen=1)
    return _value(found[0]) if found else None


def _spelled_out(match: re.Match[str]) -> str:
    r"""1/2 for the sign of a half, and for \frac{1}{2}; a space before it where a number ends."""
    if match["sign"]:
        fraction = unicodedata.normalize("NFKC", match["sign"]).replace("\u2044", "/")
    else:
        fraction = f"{match['top'] or match['first']}/{match['bottom'] or match['second']}"
    before = match.string[max(0, match.start() - 1) : match.start()]
    return (" " if before.isdecimal() else match["space"]) + fraction


def _value(match: re.Match[str]) -> Value | None:
    negative = match["sign"] is not None
    if match["time"]:
        return ("time", negative, *(_digits(part).lstrip("0") for part in match["time"].split(":")))
    if match["plain"]:
        return _decimal(negative, match["plain"], _integer(match["e"] or "0"))
    if match["ten"]:
        return _decimal(negative, match["ten"], _exponent(match))
    try:
        value = _power(match) if match["base"] else _quotient(match)
    except (ValueError, ZeroDivisionError):
        return None
    return _of_fraction(-value if negative else value)


def _power(match: re.Match[str]) -> Fraction:
    base, exponent = _point(match["base"]), _exponent(match)
    if abs(exponent) * len(base) > MAX_FRACTION_DIGITS:
        raise ValueError
    return Fraction(base) ** exponent


def _quotient(match: re.Match[str]) -> Fraction:
    top, bottom = match["part"] or match["top"], match["parts"] or match["bottom"]
    return Fraction(_point(top)) / Fraction(_point(bottom)) + Fraction(
        _point(match["whole"] or "0")
    )


def _exponent(match: re.Match[str]) -> int:
    return _integer(match["caret"] or match["raised"])


def _integer(power: str) -> int:
    power = power.translate(_SUPERSCRIPT)
    sign = -1 if power[0] in _MINUS else 1
    return sign * int(power.lstrip("+" + _MINUS))


def _digits(text: str) -> str:
    """The digits of any script as 0 to 9."""
    return "".join(str(unicodedata.decimal(letter)) for letter in text if letter.isdecimal())


def _point(number: str) -> str:
    """A number of `_PLAIN` with a decimal point and without groups.

    Raises:
        ValueError: it has more digits than a fraction may.
    """
    whole, part = _split(number)
    if len(whole) + len(part) > MAX_FRACTION_DIGITS:
        raise ValueError
    return f"{whole or '0'}.{part or '0'}"


def _split(number: str) -> tuple[str, str]:
    """Digits before and after the decimal mark."""
    mark = max(number.rfind("."), number.rfind(","))
    groups = number[mark : mark + 1] and (
        number.count(number[mark]) > 1
        or (number[mark] == "," and len(number) - mark == 4 and number[0] not in "0" and mark <= 3)
    )
    if mark < 0 or groups:
        return _digits(number), ""
    return _digits(number[:mark]), _digits(number[mark + 1 :])


def _decimal(negative: bool, number: str, power: int) -> Value:
    whole, part = _split(number)
    digits = (whole + part).lstrip("0")
    kept = digits.rstrip("0")
    if not kept:
        return ("decimal", False, "", 0)
    return ("decimal", negative, kept, power - len(part) + len(digits) - len(kept))


def _of_fraction(value: Fraction) -> Value:
    """As a decimal if it is one, so that 1/2 is 0.5."""
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest //= prime
            count += 1
        places = max(places, count)
    if rest != 1:
        return ("fraction", value.numerator, value.denominator)
    scaled = value.numerator * 10**places // value.denominator
    kept = str(abs(scaled)).rstrip("0")
    if not kept:
        return ("decimal", False, "", 0)
    return ("decimal", value < 0, kept, len(str(abs(scaled))) - len(kept) - places)
