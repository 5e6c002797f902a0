"""Change the batch or the picture's size of input specs, "1x3x224x224" to "8x3x160x160"."""

import re
from collections.abc import Sequence

from flopprof.errors import UsageError

# A lone number, "sr=16000", is no size.
_SHAPED = re.compile(r"(?P<name>\w+=)?(?P<sizes>\d+(?:[x×X,]\d+)+|\d+(?=:))(?P<rest>(?::.*)?)")


def resized(
    texts: Sequence[str], *, batch: int | None = None, input_size: int | None = None
) -> list[str]:
    """Return the specs with another batch, or other height and width.

    Args:
        texts: Specs of the inputs, `[name=]shape[:dtype…]`; those without a shape stay.
        batch: First size of the first input, and of each that has the same first size.
        input_size: Height and width of each input of four sizes.

    Raises:
        UsageError: No input has such a size.
    """
    parsed = [_SHAPED.fullmatch(text) for text in texts]
    shapes = [_sizes(match) if match else [] for match in parsed]
    if batch is not None:
        leading = next((shape[0] for shape in shapes if shape), None)
        if leading is None:
            raise UsageError("no input has a batch", remedy="leave out --batch")
        shapes = [
            [batch, *shape[1:]] if shape and shape[0] == leading else shape for shape in shapes
        ]
    if input_size is not None:
        if not any(len(shape) == 4 for shape in shapes):
            raise UsageError(
                f"no input is a batch of pictures: {', '.join(texts) or 'there is none'}",
                remedy="leave out --input-size, or give --input",
            )
        shapes = [
            [*shape[:2], input_size, input_size] if len(shape) == 4 else shape for shape in shapes
        ]
    return [
        _spelled(match, shape) if match else text
        for text, match, shape in zip(texts, parsed, shapes, strict=True)
    ]


def _sizes(match: re.Match[str]) -> list[int]:
    return [int(size) for size in re.split("[x×X,]", match["sizes"])]


def _spelled(match: re.Match[str], shape: Sequence[int]) -> str:
    return f"{match['name'] or ''}{'x'.join(map(str, shape))}{match['rest']}"
