"""Counting the words of an answer."""

import re


def count_words(text: str) -> int:
    return len(text.split())


def first_words(text: str, count: int) -> str:
    """The beginning of a text up to its `count`-th word, spaced as it is."""
    found = re.match(rf"\s*(\S+(?:\s+\S+){{0,{count - 1}}})", text)
    return found[1] if found else ""
