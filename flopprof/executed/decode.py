"""Turn instructions of x86-64, and how often each was executed, into operations."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from flopprof.errors import UsageError

LONGEST = 15
"""Bytes of an instruction at most."""

_WIDTHS = {"zmm": 64, "ymm": 32, "xmm": 16}  # bytes of a register
_EVEX = 0x62
_VEX_2 = 0xC5
_VEX_3 = 0xC4


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction as far as it matters here.

    Attributes:
        name: Its mnemonic; of those that the decoder does not know, their encoding:
            "evex.MAP.PREFIX.W.OPCODE" (vdpbf16ps is evex.2.2.0.52), or "vex.…" likewise.
        width_bytes: Of its widest vector register; 0 without one.
        is_masked: Whether a mask may switch lanes off.
    """

    name: str
    width_bytes: int = 0
    is_masked: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of instructions.csv: what an instruction is worth.

    Attributes:
        pattern: Of the whole name.
        kind: "fma", "vector", "x87", "int", "int fma", "none" or "unknown"; "tile fma" and "tile
            int" where the sizes of tiles, which are not in the instruction, decide.
        per_lane: Operations in each lane, or for each 4 bytes of a tile's depth.
        lane_bytes: Bytes of a lane; 0 for an instruction on one number.
    """

    pattern: re.Pattern[str]
    kind: str
    per_lane: float
    lane_bytes: int

    def operations(self, instruction: Instruction) -> int:
        """Return the operations of one execution, all lanes counted."""
        if self.lane_bytes:
            return int(self.per_lane * (instruction.width_bytes // self.lane_bytes))
        is_number = self.kind == "x87" or instruction.width_bytes > 0  # cmpsd also compares texts
        return int(self.per_lane) if is_number else 0


@dataclass(frozen=True, slots=True)
class Executed:
    """One address.

    Attributes:
        code: What begins there; b"" where it is gone.
        times: How often it was executed.
        tile_products: Of AMX products: rows × columns × depth of their tiles, added up, depth in
            groups of 4 bytes; 0 of all else, and where the sizes of tiles are not known.
    """

    code: bytes
    times: int
    tile_products: int = 0


@dataclass(frozen=True, slots=True)
class Operations:
    """What one thread executed.

    Attributes:
        instructions: All of them.
        fma_flops: FLOPs of fused multiply-adds and dot products; one multiply-add is two.
        flops: All FLOPs.
        int_ops: Operations on vectors of integers.
        int_fma_ops: Those of `int_ops` that are products with their sums.
        masked_flops: Those of `flops` whose instruction had a mask: all lanes are counted, and how
            many of them the mask left on is not known.
        masked_fma_flops: Those of `fma_flops` likewise.
        undecoded: Instructions that no rule tells the work of.
        by_instruction: FLOPs and operations on integers by mnemonic.
        undecoded_by_name: Undecoded instructions by mnemonic, or by their bytes.
    """

    instructions: int = 0
    fma_flops: int = 0
    flops: int = 0
    int_ops: int = 0
    int_fma_ops: int = 0
    masked_flops: int = 0
    masked_fma_flops: int = 0
    undecoded: int = 0
    by_instruction: dict[str, int] = field(default_factory=dict)
    undecoded_by_name: dict[str, int] = field(default_factory=dict)


@cache
def rules() -> tuple[Rule, ...]:
    """Return the rows of instructions.csv in order."""
    with Path(__file__).with_name("instructions.csv").open(encoding="utf-8") as file:
        return tuple(
            Rule(
                re.compile(row["instruction"]),
                row["kind"],
                float(row["per_lane"]),
                int(row["lane_bytes"]),
            )
            for row in csv.DictReader(file)
        )


@cache
def rule_of(name: str) -> Rule | None:
    """Return what an instruction is worth by its name; None where it does no arithmetic."""
    return next((rule for rule in rules() if rule.pattern.fullmatch(name)), None)


def decode(code: bytes) -> Instruction | None:
    """Return the instruction that `code` begins with; None where it is not known.

    Raises:
        UsageError: The decoder is not installed.
    """
    entry = next(_decoder().disasm_lite(code, 0, 1), None)
    if entry is None:
        return _by_encoding(code)
    _, _, name, operands = entry
    width = next((size for prefix, size in _WIDTHS.items() if prefix in operands), 0)
    words = name.split()  # "rep movsb", "lock add"
    return Instruction(words[-1], width, re.search(r"\{k[1-7]\}", operands) is not None)


def add_up(executed: Iterable[Executed]) -> Operations:
    """Return the operations of what was executed, one entry per address."""
    total: Counter[str] = Counter()
    by_instruction: Counter[str] = Counter()
    undecoded: Counter[str] = Counter()
    for each in executed:
        total["instructions"] += each.times
        instruction = decode(each.code)
        if instruction is None:
            undecoded[each.code.hex()] += each.times
            continue
        rule = rule_of(instruction.name)
        if rule is None or rule.kind == "none":
            continue
        operations = _operations(rule, instruction, each)
        if operations is None:
            undecoded[instruction.name] += each.times
        elif operations:
            by_instruction[instruction.name] += operations
            for name in _sums(rule, instruction):
                total[name] += operations
    return Operations(
        **total,
        undecoded=undecoded.total(),
        by_instruction=dict(by_instruction.most_common()),
        undecoded_by_name=dict(undecoded.most_common()),
    )


def _operations(rule: Rule, instruction: Instruction, executed: Executed) -> int | None:
    """Return the operations of one address; None where they are not known."""
    if rule.kind.startswith("tile "):
        return int(rule.per_lane * executed.tile_products) or None
    return None if rule.kind == "unknown" else executed.times * rule.operations(instruction)


def _sums(rule: Rule, instruction: Instruction) -> Iterator[str]:
    """Yield the sums that an instruction's operations belong to."""
    if "int" in rule.kind:
        yield "int_ops"
        if rule.kind != "int":
            yield "int_fma_ops"
        return
    yield "flops"
    if instruction.is_masked:
        yield "masked_flops"
    if rule.kind.endswith("fma"):
        yield "fma_flops"
        if instruction.is_masked:
            yield "masked_fma_flops"


def _by_encoding(code: bytes) -> Instruction | None:
    """Return an instruction with a rule that the decoder does not know, by its EVEX or VEX prefix.

    Intel's manual, volume 2, "Intel AVX-512 encoding" and "VEX prefix".
    """
    if len(code) >= 6 and code[0] == _EVEX:
        opcode_map = code[1] & 7
        wide = code[2] >> 7
        prefix = code[2] & 3
        length = (code[3] >> 5) & 3
        is_register = code[5] >> 6 == 3
        if is_register and code[3] & 0x10:  # the length bits say how to round: 512 bits
            length = 2
        name = f"evex.{opcode_map}.{prefix}.{wide}.{code[4]:02x}"
        instruction = Instruction(name, 16 << min(length, 2), code[3] & 7 != 0)
    elif len(code) >= 5 and code[0] == _VEX_3:
        name = f"vex.{code[1] & 31}.{code[2] & 3}.{code[2] >> 7}.{code[3]:02x}"
        instruction = Instruction(name, 32 if code[2] & 4 else 16)
    elif len(code) >= 4 and code[0] == _VEX_2:
        name = f"vex.1.{code[1] & 3}.0.{code[2]:02x}"
        instruction = Instruction(name, 32 if code[1] & 4 else 16)
    else:
        return None
    return instruction if rule_of(instruction.name) else None


@cache
def _decoder() -> Any:
    try:
        import capstone
    except ImportError as error:
        raise UsageError(
            "capstone, which decodes instructions, is not installed",
            remedy="pip install 'flopprof[stepping]'",
        ) from error
    return capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)


def check_decoder() -> None:
    """Raise `UsageError` where no decoder is installed."""
    _decoder()
