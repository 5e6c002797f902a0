"""A count as other tools publish it: multiply-adds, with and without attention's own products."""

from dataclasses import dataclass

import pandas as pd

from flopprof.units import si


@dataclass(frozen=True, slots=True)
class Macs:
    """What figures published elsewhere are of; each is of the matmul class, half of its FLOPs.

    Attributes:
        macs: Multiply-adds of all contractions.
        macs_without_attention: Without the two products of attention, which tools that count by
            layers (thop), or have no formula for them (fvcore), leave out.
    """

    macs: int
    macs_without_attention: int

    @classmethod
    def of(cls, sites: pd.DataFrame) -> "Macs":
        """Return the figures of a run's sites, those that are known."""
        counted = sites[sites["matmul_flops"].notna()]
        attention = counted[counted["kind"] == "attention"]
        macs = sum(map(int, counted["matmul_flops"])) // 2
        return cls(macs, macs - sum(map(int, attention["matmul_flops"])) // 2)

    def text(self) -> str:
        """Return them as a line below a summary."""
        return (
            f"MACs {si(self.macs, 'MACs')}, without attention's products "
            f"{si(self.macs_without_attention, 'MACs')}"
        )
