r"""What counts as a correct answer, case by case."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignctl.rewards.extraction import final_answer
from alignctl.rewards.marks import MAX_CHARACTERS
from alignctl.rewards.math_rule import math_rule

CASES = [
    # Where the answer stands.
    (r"So \boxed{72}", "72", "correct"),
    (r"First \boxed{3}, then \boxed{72}.", "72", "correct"),
    (r"First \boxed{72}, then \boxed{3}.", "72", "wrong"),
    (r"\boxed{\frac{3}{4}} in total", "0.75", "correct"),
    (r"\boxed {72}", "72", "correct"),
    (r"\boxed{72} and not 73", "72", "correct"),
    # A box that is open at the end was cut: 72 may have become 720.
    (r"\boxed{72", "72", "no_answer"),
    (r"\boxed{3} so \boxed{7", "3", "no_answer"),
    ("48 + 24 = 72\n#### 72", "72", "correct"),
    ("#### 3\n#### 72 clips\nI am done at 5.", "72", "correct"),
    ("####72", "72", "correct"),
    ("The answer is 72.", "72", "correct"),
    ("The answer is 3. No, the answer is 72, because 48 + 24 = 70 + 2.", "72", "correct"),
    ("The answer is 48 + 24 = 72.", "72", "correct"),
    ("The answer is: $18.00 per day.", "18", "correct"),
    ("The answer is <<70+2=72>>72.", "72", "correct"),
    ("**Answer:** 72", "72", "correct"),
    ("The answer is therefore 72 clips.", "72", "correct"),
    ("The final answer is $\\frac{3}{4}$. I hope it is correct.", "3/4", "correct"),
    ("She sold 48 and then 24, which makes 72 clips", "72", "correct"),
    ("72", "72", "correct"),
    ("72 clips, 3 boxes", "72", "wrong"),
    ("so x=5", "5", "correct"),
    ("It is 10-15", "15", "wrong"),
    ("It fell to -3", "-3", "correct"),
    ("5-3", "-3", "wrong"),
    # How a number is written.
    (r"\boxed{1,234.50}", "1234.5", "correct"),
    ("1,234.50", "1,234.50", "correct"),
    (r"\boxed{1{,}234}", "1234", "correct"),
    (r"\boxed{1,2,3,72}", "72", "wrong"),
    (r"\boxed{72 \text{ or } 73}", "72", "wrong"),
    (r"\boxed{\$18}", "18", "correct"),
    ("$18", "18", "correct"),
    ("It costs \u20ac18.", "18", "correct"),
    (r"\boxed{-\$18}", "-18", "correct"),
    ("#### 18", "$18", "correct"),
    (r"\boxed{50\%}", "50%", "correct"),
    ("50%", "50", "correct"),
    ("50 percent", "0.5", "correct"),
    ("0.5", "50%", "correct"),
    ("50", "0.5", "wrong"),
    ("0.5", "1/2", "correct"),
    (r"\boxed{\frac12}", "0.5", "correct"),
    (r"\boxed{\dfrac{3}{4}}", "3/4", "correct"),
    (r"It is \frac{3}{4}", "0.75", "correct"),
    (r"\boxed{-\frac{3}{4}}", "-0.75", "correct"),
    (r"\boxed{2 1/2}", "2.5", "correct"),
    (r"\boxed{2\frac{1}{2}}", "5/2", "correct"),
    ("He ate 2 1/2", "2.5", "correct"),
    ("3/4", "0.75", "correct"),
    (r"\boxed{1/0}", "1", "wrong"),
    (r"\boxed{\u22123}".replace("\\u2212", "\u2212"), "-3", "correct"),
    ("-3", "3", "wrong"),
    ("\u22123", "-3", "correct"),
    (r"\boxed{+3}", "3", "correct"),
    (r"\boxed{-0}", "0", "correct"),
    (r"\boxed{007}", "7", "correct"),
    (r"\boxed{.5}", "0.5", "correct"),
    (r"\boxed{72.}", "72", "correct"),
    (r"\boxed{72.0}", "72", "correct"),
    (r"\boxed{72 clips}", "72", "correct"),
    (r"\boxed{72\text{ cm}^2}", "72", "correct"),
    (r"\boxed{72\,\mathrm{cm}}", "72", "correct"),
    (r"\boxed{90^\circ}", "90", "correct"),
    (r"\boxed{5 million}", "5,000,000", "correct"),
    (r"\boxed{5x}", "5", "wrong"),
    (r"\boxed{2\pi}", "2", "wrong"),
    (r"\boxed{2pi}", "2", "wrong"),
    (r"\boxed{x = 5}", "5", "correct"),
    # How exact it has to be.
    ("0.3333", "1/3", "correct"),
    ("0.33", "1/3", "wrong"),
    ("10001", "10000", "wrong"),
    ("1234.51", "1234.50", "wrong"),
    ("123456789012345678901234567890", "123456789012345678901234567891", "wrong"),
    # What is no plain number.
    (r"\boxed{2\sqrt{2}}", r"\sqrt{8}", "correct"),
    (r"\boxed{(x+1)^2}", "x^2+2x+1", "correct"),
    (r"\boxed{\{2, 1\}}", r"\{1,2\}", "correct"),
    (r"\boxed{2^{10}}", "1024", "correct"),
    (r"\boxed{Paris}", "paris", "correct"),
    (r"\boxed{Pairs}", "Paris", "wrong"),
    (r"\boxed{\text{(B)}}", "B", "correct"),
    (r"\boxed{A}", "B", "wrong"),
    # Nothing to compare, or nothing to compare with.
    ("", "72", "no_answer"),
    ("I do not know", "72", "no_answer"),
    (r"\boxed{}", "72", "no_answer"),
    (r"\boxed{{{}}}", "72", "no_answer"),
    ("H2O", "2", "no_answer"),
    ("a" * 10_000, "72", "no_answer"),
    ("9" * 10_000, "72", "no_answer"),
    ("72", "", "bad_reference"),
    ("72", "{", "bad_reference"),
    ("72", "it costs ####", "bad_reference"),
    ("72", "48 + 24\n#### 72", "correct"),
    ("72", r"so \boxed{72}", "correct"),
]


@pytest.mark.parametrize(("completion", "reference", "reason"), CASES)
def test_the_rule(completion: str, reference: str, reason: str) -> None:
    assert math_rule(completion, reference) == reason


NUMBERS = st.decimals(-(10**9), 10**9, allow_nan=False, places=2)


@settings(deadline=None)
@given(value=NUMBERS, other=NUMBERS)
def test_a_number_equals_itself_in_every_form_and_no_other(value: Decimal, other: Decimal) -> None:
    forms = [f"{value:f}", f"{value:,f}", f"${value:,f}", f"{value * 100:f}%", f"{value:f} cm"]
    for form in forms:
        for text in (f"\\boxed{{{form}}}", f"#### {form}", f"The answer is {form}.", form):
            assert math_rule(text, f"{value:f}") == "correct"
    if abs(value - other) > Decimal("0.0002"):
        assert math_rule(f"\\boxed{{{other:f}}}", f"{value:f}") == "wrong"


@settings(deadline=None)
@given(st.text(st.sampled_from(r"\boxed{}#answer is: 0123456789.,/%$-+^=" + "\n"), max_size=400))
def test_no_text_breaks_the_extraction(text: str) -> None:
    answer = final_answer(text)
    assert answer is None or 0 < len(answer) <= MAX_CHARACTERS


@pytest.mark.parametrize(
    "unit", ["\\boxed{", "#", "answer is ", "1,", "-", "1/", "{", "\\frac{", "$", "9", " ", "1 "]
)
def test_garbage_is_read_in_linear_time(unit: str) -> None:
    """Of so many characters, a quadratic search would not end within the time of a test."""
    answer = final_answer(unit * (300_000 // len(unit)))
    assert answer is None or len(answer) <= MAX_CHARACTERS
