"""Texts as numbers: a column of a few texts is a number for each row, and the texts once."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd


class Numbered:
    """Texts in the order in which they came, each with its number.

    Attributes:
        texts: By number.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Number these texts from 0."""
        self._numbers: dict[str, int] = {}
        self.texts: list[str] = []
        for text in texts:
            self.number(text)

    def number(self, text: str) -> int:
        """Return the text's number, a new one where it is new."""
        number = self._numbers.setdefault(text, len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        return number


def numbers_of(texts: Iterable[str]) -> np.ndarray:
    """Return a number for each text; equal ones have the same."""
    distinct = Numbered()
    return np.array([distinct.number(text) for text in texts], np.int32)


def coded(texts: Sequence[str], labels: np.ndarray) -> pd.Categorical:
    """Return the column `texts[label]` for each label; its categories are the distinct texts."""
    distinct = list(dict.fromkeys(texts))
    return pd.Categorical.from_codes(np.take(numbers_of(texts), labels), distinct)


def coded_sorted(texts: Sequence[str], labels: np.ndarray) -> pd.Categorical:
    """Return that column; its categories are the texts that are in it, in order."""
    there = np.flatnonzero(np.bincount(labels, minlength=len(texts))).tolist()
    categories = sorted({texts[number] for number in there})
    place = {text: at for at, text in enumerate(categories)}
    numbers = np.zeros(len(texts), np.int32)
    for number in there:
        numbers[number] = place[texts[number]]
    return pd.Categorical.from_codes(np.take(numbers, labels), categories)
