"""Masks over what tells who somebody is: addresses and numbers of a known form.

Patterns find forms, not people: names and places stay. Numbers that carry a check digit must fit
it, so that few others are masked.
"""

import re

_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_BYTE = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_IP = re.compile(rf"(?<![\d.])(?:{_BYTE}\.){{3}}{_BYTE}(?![\d.]*\d)", re.ASCII)
_CARD = re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)", re.ASCII)
_CHINESE_ID = re.compile(r"(?<!\d)\d{17}[\dXx](?!\d)", re.ASCII)
_PHONE = re.compile(
    r"(?<![\w+])\+\d{1,3}(?:[ ().-]{0,2}\d{2,5}){2,5}(?!\d)"  # international
    r"|(?<![\w(-])(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\d-])"  # North America
    r"|(?<![\w-])1[3-9]\d{9}(?![\d-])",  # China, mobile
    re.ASCII,
)
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_ID_CHECKS = "10X98765432"


def mask(text: str) -> str:
    """Mask addresses and numbers by `<EMAIL>`, `<IP>`, `<ID>`, `<CARD>` and `<PHONE>`."""
    text = _EMAIL.sub("<EMAIL>", text)
    text = _IP.sub("<IP>", text)
    text = _CHINESE_ID.sub(lambda found: "<ID>" if _is_chinese_id(found[0]) else found[0], text)
    text = _CARD.sub(lambda found: "<CARD>" if _is_card(found[0]) else found[0], text)
    return _PHONE.sub("<PHONE>", text)


def _is_card(text: str) -> bool:
    """Check a number by Luhn's rule: double every second digit from the right, add the digits."""
    digits = [int(character) for character in text if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_chinese_id(text: str) -> bool:
    """Check the last digit of an ID number by GB 11643: weighted digits modulo 11."""
    total = sum(int(digit) * weight for digit, weight in zip(text, _ID_WEIGHTS, strict=False))
    return _ID_CHECKS[total % 11] == text[-1].upper()
