"""Every case, by name. Each file is a family."""

from dataclasses import replace
from importlib import import_module

from peers.case import Case

FAMILIES = (
    "layers",
    "products",
    "attention",
    "recurrent",
    "structures",
    "kinds",
    "training",
    "transforms",
    "programs",
)


def all_cases() -> dict[str, Case]:
    """Return the cases whose truth was derived by hand, in the order of the page.

    Raises:
        ValueError: Two have one name.
    """
    cases: dict[str, Case] = {}
    for family in FAMILIES:
        for case in import_module(f"peers.cases.{family}").CASES:
            if case.name in cases:
                raise ValueError(f"two cases are named {case.name}")
            cases[case.name] = replace(case, family=family)
    return cases
