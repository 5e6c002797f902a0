"""Memory that runs out: a clear error of exit code 6, and nothing held that the call allocated."""

import gc

import pytest
import torch
from torch import nn

import flopprof
from flopprof.capture.call import is_out_of_memory
from flopprof.cli import main
from flopprof.errors import ModelError
from tests.planted import Calls

# 2⁵⁰ elements of 4 bytes: 4 PiB, which no machine has.
TOO_MANY = 2**50


class Holder:
    """Something that a forward pass holds while it asks for more."""

    one = 1


def test_a_model_that_asks_for_too_much_is_told_so_and_lets_go_of_what_it_had():
    def forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        holder = Holder()
        return torch.empty(TOO_MANY) + holder.one

    with pytest.raises(ModelError, match="memory ran out while the model ran on 8") as caught:
        flopprof.profile(Calls(forward), torch.ones(8), ceilings=False)

    assert "smaller input or batch" in caught.value.remedy
    gc.collect()
    assert [held for held in gc.get_objects() if isinstance(held, Holder)] == []


def test_a_model_that_does_not_fit_its_device_is_told_so():
    class Unmovable(nn.Linear):
        def to(self, *_: object, **__: object) -> "Unmovable":
            torch.empty(TOO_MANY)
            return self

    model = Unmovable(2, 2, device="meta")

    with pytest.raises(ModelError, match="memory ran out while the model moved to cpu"):
        flopprof.profile(model, torch.ones(1, 2), device="cpu", ceilings=False)


def test_the_command_exits_with_6(tmp_path, capsys):
    code = tmp_path / "greedy.py"
    code.write_text(
        "import torch\n"
        "class Greedy(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        f"        return x + torch.empty({TOO_MANY})\n"
        "def build():\n"
        "    return Greedy()\n"
    )

    exit_code = main(["run", f"{code}:build", "--input", "8", "--device", "cpu", "-o",
                      str(tmp_path / "run.flopprof")])  # fmt: skip

    assert exit_code == 6
    assert "memory ran out while the model ran on 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be …"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling …"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
        (KeyError("x"), False),
    ],
)
def test_what_is_told_as_memory_that_ran_out(error, expected):
    assert is_out_of_memory(error) is expected
