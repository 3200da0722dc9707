"""Small helpers on C text."""

from __future__ import annotations


def split_top(text: str, separator: str = ",") -> list[str]:
    """Parts of `text` between separators that stand in no bracket and no string."""
    parts, depth, quoted, start = [], 0, False, 0
    for i, char in enumerate(text):
        if char == '"' and text[i - 1 : i] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [p.strip() for p in parts if p.strip()]


def closing(text: str, opening: int) -> int:
    """Index of the bracket that closes the one at `opening`."""
    depth, quoted = 0, False
    for i in range(opening, len(text)):
        char = text[i]
        if char == '"' and text[i - 1] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth == 0:
                return i
    raise ValueError(f"no bracket closes the one at {opening}")
