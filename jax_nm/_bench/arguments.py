"""Types of command-line arguments."""

from __future__ import annotations

import argparse

from jax_nm._pattern import Pattern


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"must be an integer of at least 1, got {text}"
        )
    return int(text)


def pattern(text: str) -> Pattern:
    try:
        return Pattern.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
