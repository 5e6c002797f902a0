"""What a tool's answer comes to, beside the truth."""

from typing import Any

from peers.case import Case

VERDICTS = {
    "exact": "the figure is right",
    "told": "it is wrong, and the tool says what it left out",
    "off": "it is wrong, and the tool says nothing",
    "zero": "it is zero where there is work, and the tool says nothing",
    "refused": "the tool gives a reason of its own instead of a figure",
    "crash": "an exception from inside, or more time or memory than it was given",
}
PRINTED_WITHIN = 5e-4  # some tools count by way of figures that are rounded to four digits,
PRINTED_FLOPS = 2  # and to one multiply-add
MIXED_WITHIN = 0.05  # of published figures: what elementwise work adds, to tools that add it


def judge(case: Case, answer: dict[str, Any], *, mixes: bool) -> str:
    """Return the verdict on what a child process reported."""
    if "refused" in answer:
        return "refused"
    if "error" in answer:
        return "crash"
    flops = answer["flops"]
    if flops is None:
        return "told"
    if is_right(flops, case, mixes=mixes):
        return "exact"
    if case.elementwise_frac and lies_around(case, flops, answer.get("all_work")):
        return "exact"
    mixed = answer.get("with_elementwise")
    if mixed is not None and is_right(mixed, case, mixes=True):
        return "exact"
    if answer["left_out"]:
        return "told"
    return "off" if flops or mixed else "zero"


def lies_around(case: Case, flops: float, all_work: float | None) -> bool:
    """Return whether a figure with elementwise work lies between contractions and all work.

    Of a tool that gives contractions alone, whether they are as near as such work allows.

    Args:
        case: One of a published figure that has elementwise work in it.
        flops: What a tool gives for contractions.
        all_work: And for all work, where it does.
    """
    near = max(case.within * case.flops, case.rounding_flops)
    least = (1 - case.elementwise_frac) * case.flops
    # The table counts an elementwise operation as a multiply-add, and is doubled with the rest.
    most = case.flops if all_work is None else flops + 2 * (all_work - flops)
    reaches = most >= case.flops - near
    return least <= flops <= case.flops + near and reaches


def is_right(flops: float, case: Case, *, mixes: bool) -> bool:
    """Return whether a figure agrees with the truth, or with another convention that is as good."""
    return any(agrees(flops, right, case, mixes=mixes) for right in (case.flops, *case.also))


def agrees(flops: float, right: int, case: Case, *, mixes: bool) -> bool:
    """Return whether a figure is right, or as near as rounding and elementwise work allow."""
    above = flops - right
    near = max(case.within * right, case.rounding_flops, PRINTED_WITHIN * right, PRINTED_FLOPS)
    if abs(above) <= near:
        return True
    allowed = 2 * case.vector_flops + near
    if mixes and case.within:
        allowed = max(allowed, MIXED_WITHIN * right)
    return mixes and 0 <= above <= allowed
