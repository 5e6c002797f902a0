"""What an instruction is worth: bytes of machine code, each written out with its assembly."""

import pytest

from flopprof.executed.decode import Executed, add_up, rules

pytest.importorskip("capstone")


def sums(code: str, times: int = 1) -> tuple[int, int, int, int]:
    """Return FLOPs of multiply-adds, all FLOPs, integer operations, undecoded instructions."""
    done = add_up([Executed(bytes.fromhex(code).ljust(15, b"\x90"), times)])
    return done.fma_flops, done.flops, done.int_ops, done.undecoded


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        # 512 bits are 16 float32, 256 are 8; a multiply-add is two.
        pytest.param("62f27548b8c2", (32, 32, 0, 0), id="vfmadd231ps zmm0, zmm1, zmm2"),
        pytest.param("c4e275b8c2", (16, 16, 0, 0), id="vfmadd231ps ymm0, ymm1, ymm2"),
        pytest.param("c4e2f1b9c2", (2, 2, 0, 0), id="vfmadd231sd xmm0, xmm1, xmm2"),
        # 16 lanes, two products of bfloat16 in each.
        pytest.param("62f2764852c2", (64, 64, 0, 0), id="vdpbf16ps zmm0, zmm1, zmm2"),
        pytest.param("62f2762852c2", (32, 32, 0, 0), id="vdpbf16ps ymm0, ymm1, ymm2"),
        # 32 lanes of float16.
        pytest.param("62f5744858c2", (0, 32, 0, 0), id="vaddph zmm0, zmm1, zmm2"),
        pytest.param("62f67548b8c2", (64, 64, 0, 0), id="vfmadd231ph zmm0, zmm1, zmm2"),
        pytest.param("0f58c1", (0, 4, 0, 0), id="addps xmm0, xmm1"),
        pytest.param("f20f59c1", (0, 1, 0, 0), id="mulsd xmm0, xmm1"),
        pytest.param("c5f558c2", (0, 4, 0, 0), id="vaddpd ymm0, ymm1, ymm2"),
        pytest.param("f30f51c1", (0, 1, 0, 0), id="sqrtss xmm0, xmm1"),
        pytest.param("d8c1", (0, 1, 0, 0), id="fadd st(0), st(1)"),
        # 16 lanes of four products and their sums: 8 operations.
        pytest.param("62f2754850c2", (0, 0, 128, 0), id="vpdpbusd zmm0, zmm1, zmm2"),
        # 4 lanes of two products and a sum.
        pytest.param("660ff5c1", (0, 0, 12, 0), id="pmaddwd xmm0, xmm1"),
        pytest.param("0f28c1", (0, 0, 0, 0), id="movaps xmm0, xmm1"),
        pytest.param("0f2fc1", (0, 0, 0, 0), id="comiss xmm0, xmm1: a branch's condition"),
        pytest.param("a7", (0, 0, 0, 0), id="cmpsd dword ptr [rsi], dword ptr [rdi]: no number"),
        # How large its tiles are is not in the instruction.
        pytest.param("c4e26b5ec1", (0, 0, 0, 1), id="tdpbssd tmm0, tmm1, tmm2"),
        pytest.param("62f27e4872c1", (0, 0, 0, 0), id="vcvtneps2bf16 ymm0, zmm1"),
        pytest.param("c4e27b49c0", (0, 0, 0, 0), id="tilezero tmm0"),
        pytest.param("06", (0, 0, 0, 1), id="no instruction in 64 bits"),
    ],
)
def test_an_instruction_counts_by_its_lanes(code, expected):
    assert sums(code) == expected


def test_an_instruction_counts_as_often_as_it_is_executed():
    assert sums("0f58c1", times=7) == (0, 28, 0, 0)


def test_lanes_that_a_mask_may_switch_off_are_counted_and_said():
    masked = bytes.fromhex("62f1744958c2").ljust(15, b"\x90")  # vaddps zmm0 {k1}, zmm1, zmm2

    done = add_up([Executed(masked, 2)])

    assert done.flops == 32  # twice 16 lanes
    assert done.masked_flops == 32
    assert done.masked_fma_flops == 0


@pytest.mark.parametrize(
    ("code", "fma", "integers"),
    [
        # 16 rows × 16 columns × 16 groups of 4 bytes: 4,096 of them. Each has two products of
        # 16 bits (4 FLOPs) or four of 8 bits (8 operations).
        pytest.param("c4e26a5cc1", 16_384, 0, id="tdpbf16ps tmm0, tmm1, tmm2"),
        pytest.param("c4e26b5ec1", 0, 32_768, id="tdpbssd tmm0, tmm1, tmm2"),
    ],
)
def test_a_product_of_tiles_counts_by_their_sizes(code, fma, integers):
    done = add_up([Executed(bytes.fromhex(code), 1, tile_products=4096)])

    assert (done.fma_flops, done.flops) == (fma, fma)
    assert (done.int_ops, done.int_fma_ops) == (integers, integers)
    assert done.undecoded == 0


def test_code_that_is_gone_is_undecoded_and_not_zero():
    done = add_up([Executed(b"", 3)])

    assert (done.instructions, done.undecoded) == (3, 3)


def test_every_rule_has_a_kind_that_is_known():
    of_tiles = {"tile fma", "tile int"}
    others = {"fma", "vector", "x87", "int", "int fma", "none", "unknown"}
    assert {rule.kind for rule in rules()} == of_tiles | others
