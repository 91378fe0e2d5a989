"""When two answers are the same: text, final numbers (GSM8K), and mathematics (MATH)."""

import re
from fractions import Fraction

NUMBER = r"-?\$?-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"


def same_text(prediction: str, reference: str) -> bool:
    """Equal up to white space."""
    return prediction.split() == reference.split()


def same_number(prediction: str, reference: str) -> bool:
    """Equal final numbers, as GSM8K scores; False when the prediction has none."""
    predicted, wanted = final_number(prediction), final_number(reference)
    return predicted is not None and predicted == wanted


def final_number(text: str) -> Fraction | None:
    """The number after the last "####", else after the last "answer is", else the last one."""
    for mark in ("####", r"answer is:?"):
        marked = re.findall(rf"(?i){mark}[^\d\n.]*?({NUMBER})", text)
        if marked:
            return _number(marked[-1])
    numbers = re.findall(NUMBER, text)
    return _number(numbers[-1]) if numbers else None


def _number(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace("$", "").replace("--", ""))


def same_mathematics(prediction: str, reference: str) -> bool:
    """Equal final answers in the sense of MATH: the same number, or the same normalised LaTeX."""
    predicted, wanted = final_answer(prediction), final_answer(reference)
    if not predicted or not wanted:
        return False
    left, right = normalise(predicted), normalise(wanted)
    if left == right:
        return True
    numbers = value(left), value(right)
    return numbers[0] is not None and numbers[0] == numbers[1]


def final_answer(text: str) -> str:
    """What the last \\boxed holds, else what follows "####" or "answer is", else a bare answer."""
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed
    for mark in ("####", r"answer is:?"):
        marked = re.findall(rf"(?i){mark}\s*(.+)", text)
        if marked:
            return marked[-1].strip()
    return text.strip() if "\n" not in text.strip() else ""


def _last_boxed(text: str) -> str | None:
    """What the last \\boxed{…}, \\fbox{…} or \\boxed x holds; empty if its brace never closes."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].split("boxed" if text.startswith("\\boxed", start) else "fbox", 1)[1]
    if not rest.lstrip().startswith("{"):
        return re.split(r"[\s$]", rest.strip(), maxsplit=1)[0]
    rest, depth = rest.lstrip(), 0
    for index, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[1:index]
    return ""


REWRITES = (
    (r"\\left|\\right|\\!|\\,|\\;|\\:|\\ |\\displaystyle", ""),
    (r"\\[dt]frac", r"\\frac"),
    (r"\^\{?\\circ\}?|\\degree", ""),
    (r"\\?%|\\?\$", ""),
    (r"\\(?:text|mbox|textrm)\{\s*(?:and|or)\s*\}", ","),
    (r"(?<=[\d}])\s*\\(?:text|mbox|textrm|mathrm)\{[^{}]*\}(?:\^\{?\d\}?)?", ""),  # a unit
    (r"\\(?:text|mbox|textrm|textbf|mathrm|mathbf)\{([^{}]*)\}", r"\1"),
    (r"\\(?:cdot|times)", "*"),
    (r"\\leq?(?![a-z])", "<="),
    (r"\\geq?(?![a-z])", ">="),
    (r"\s+", ""),
    (r"\\frac(\d)(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac(\d)\{", r"\\frac{\1}{"),
    (r"\\frac\{([^{}]+)\}(\d)", r"\\frac{\1}{\2}"),
    (r"\\sqrt(\w)", r"\\sqrt{\1}"),
    (r"(?<!\d)\.(?=\d)", "0."),
    (r"(?<=\d),(?=\d{3}(?!\d))(?![^(\[]*[)\]])", ""),  # thousands, not the comma of a pair
    (r"^[a-zA-Z](?:\(\w\))?(?:=|\\in)", ""),  # the x of "x = 3"
    (r"^(-?\d+)/(\d+)$", r"\\frac{\1}{\2}"),
    (r"(\.\d*?)0+$", r"\1"),
    (r"\.$", ""),
)


def normalise(answer: str) -> str:
    """One spelling for one answer: spacing, units, percent and dollar signs, forms of fractions."""
    for pattern, replacement in REWRITES:
        answer = re.sub(pattern, replacement, answer)
    return answer


def value(answer: str) -> Fraction | None:
    """The rational number that a normalised answer is, if it is one."""
    fraction = re.fullmatch(r"(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}", answer)
    if fraction and int(fraction[3]):
        return Fraction(int(fraction[1] + "1") * int(fraction[2]), int(fraction[3]))
    return Fraction(answer) if re.fullmatch(r"-?\d+(\.\d+)?", answer) else None
