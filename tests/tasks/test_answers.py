"""Which answers are the same, and which only look it."""

from fractions import Fraction

import pytest

from fedtuners.tasks.answers import (
    final_answer,
    final_number,
    same_mathematics,
    same_number,
    same_text,
)


def test_text_is_equal_up_to_white_space() -> None:
    assert same_text(" f(a=1,  b=2)\n", "f(a=1, b=2)")
    assert not same_text("f(a=1, b=2)", "f(a=1, B=2)")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18.\n#### 18", 18),
        ("#### 1,234", 1234),
        ("#### -5", -5),
        ("#### $ 70,000.00", 70000),
        ("The answer is 7. That took 3 steps.", 7),
        ("The answer is: $12.50.", Fraction(25, 2)),
        ("the answer is therefore $1,000", 1000),
        ("So there are 4 apples and 12 pears.", 12),
        ("It costs .5 dollars", Fraction(1, 2)),
        ("none at all", None),
    ],
)
def test_final_numbers(text: str, number: int | Fraction | None) -> None:
    assert final_number(text) == number


def test_numbers_are_equal_by_value() -> None:
    assert same_number("The answer is 15", "15.0")
    assert same_number("#### 1000", "... \n#### 1,000")
    assert not same_number("#### 10", "#### 100")
    assert not same_number("", "#### 0")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{1} and then \boxed{\frac{a}{b}}.", r"\frac{a}{b}"),
        (r"hence $\boxed{\text{all } x \in \{1,2\}}$", r"\text{all } x \in \{1,2\}"),
        (r"it is \boxed 7 .", "7"),
        ("Thus 3.\nThe answer is: 3", "3"),
        ("one line", "one line"),
        ("two lines\nand no answer", ""),
        (r"\boxed{never closed", r""),
    ],
)
def test_final_answers(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (r"\dfrac{1}{2}", r"\frac12"),
        ("1/2", r"\tfrac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        (".50", "0.5"),
        ("-3/4", r"-\frac{3}{4}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        ("10,000", "10000"),
        (r"\$12", "12"),
        (r"50\%", "50"),
        (r"90^\circ", "90"),
        (r"12\text{ cm}^2", "12"),
        (r"\text{(B)}", "(B)"),
        ("x = 5", "5"),
        (r"\sqrt3", r"\sqrt{3}"),
        ("7.", "7"),
        ("2.0", "2"),
        (r"x \le 3", r"x\leq3"),
        (r"4 \times 5", r"4\cdot 5"),
    ],
)
def test_one_answer_in_two_spellings(left: str, right: str) -> None:
    assert same_mathematics(rf"so \boxed{{{left}}}", right)
    assert same_mathematics(f"Long story.\nThe answer is: {left}", rf"\boxed{{{right}}}")


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("1,2", "12"),
        ("(1,200)", "(1200)"),
        ("12", "123"),
        (r"\frac{1}{2}", r"\frac{2}{1}"),
        ("-3", "3"),
        ("x+1", "x-1"),
        ("1.5", "15"),
        ("", ""),
        ("2^{10}", "210"),
    ],
)
def test_different_answers_stay_different(left: str, right: str) -> None:
    assert not same_mathematics(rf"\boxed{{{left}}}", rf"\boxed{{{right}}}")
