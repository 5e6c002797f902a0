"""An input is guessed from the layer that the data meets first, or the reason is told."""

import pytest
import torch
from torch import nn

import flopprof
from flopprof.capture.guess import guess_input
from flopprof.errors import ModelError, UsageError


class HeadFirst(nn.Module):
    """Registers what it calls last before what it calls first."""

    def __init__(self, head, stem):
        super().__init__()
        self.head = head
        self.stem = stem

    def forward(self, x):
        return self.head(self.stem(x))


class Pooled(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 26 * 26, 4)), "1x1x28x28"),
        (nn.Sequential(nn.Conv2d(2, 8, 3, groups=2), nn.ReLU()), "1x2x224x224"),
        (nn.Sequential(nn.Linear(12, 4)), "1x12"),
        (
            nn.Sequential(nn.Embedding(50, 8), nn.LSTM(8, 4, batch_first=True)),
            "1x128:int64:0-49",
        ),
        (nn.LSTM(6, 3, batch_first=True), "1x16x6"),
        (nn.GRU(6, 3), "16x1x6"),
        (nn.GRUCell(6, 3), "1x6"),
        (nn.Conv1d(2, 3, 400), "1x2x1024"),
        (nn.Conv3d(3, 4, 3), "1x3x16x112x112"),
        (nn.ConvTranspose2d(7, 4, 4), "1x7x1x1"),
        (nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 2)), "1x5"),
        (nn.TransformerEncoderLayer(8, 2, 16), "1x8"),
        (nn.EmbeddingBag(9, 4), "1x128:int64:0-8"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6)), "1x6x224x224"),
        (HeadFirst(nn.Linear(4, 2), nn.Conv2d(5, 3, 3)), None),
        (HeadFirst(nn.Linear(3, 2), nn.Sequential(nn.Conv2d(5, 3, 3), Pooled())), "1x5x224x224"),
        (HeadFirst(nn.Linear(3, 2), nn.Embedding(7, 3)), "1x128:int64:0-6"),
        (nn.ReLU(), None),
        (nn.Sequential(nn.Linear(4, 2), nn.Linear(3, 1)), None),
    ],
)
def test_an_input_is_guessed_from_the_first_layer_that_is_met_and_tried(model, expected):
    assert guess_input(model).spec == expected


def test_where_none_is_found_the_layer_and_an_example_are_told():
    guess = guess_input(nn.Sequential(nn.Linear(4, 2), nn.Linear(3, 1)))

    assert "its first layer 0 is Linear, and no size that was tried goes" in guess.reason
    assert guess.example == "--input 1x4"
    assert guess_input(nn.Bilinear(2, 3, 4)).spec is None


CODE = """
import torch
from torch import nn

class Speech(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4, bias=False)

    def forward(self, x, sr, more=None):
        assert sr == 16000
        return [self.layer(part) for part in more] if more else self.layer(x)

def one():
    return torch.zeros(3, 8), 16000

def both():
    return (torch.zeros(3, 8),), {"sr": 16000}

def named():
    return {"x": torch.zeros(3, 8), "sr": 16000}

def several():
    return (None, 16000), {"more": [torch.zeros(3, 8), torch.zeros(2, 8)]}

def raises():
    raise KeyError("no data")
"""


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "speech.py"
    path.write_text(CODE)
    return path


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"input": "3x8 16000"}, 3),
        ({"input": ["3x8", "sr=16000"]}, 3),
        ({"input": ["sr=16000", "x=3x8"]}, 3),
        ({"input": ["x=None", "sr=16000", "more=[3x8, 2x8]"]}, 5),
        ({"input_from": "one"}, 3),
        ({"input_from": "both"}, 3),
        ({"input_from": "named"}, 3),
        ({"input_from": "several"}, 5),
    ],
)
@pytest.mark.parametrize("is_file", [True, False])
def test_inputs_of_every_kind_reach_the_model(options, rows, is_file, code):
    if "input_from" in options:
        options = {"input_from": f"{code}:{options['input_from']}"}
    what = f"{code}:Speech" if is_file else flopprof.load(f"{code}:Speech", torch.zeros(1, 8)).model

    count = flopprof.count_flops(what, **options)

    assert count.matmul_flops == 2 * rows * 8 * 4  # each row: 4 sums of 8 multiply-adds


def test_inputs_by_a_function_and_by_text_are_not_mixed(code):
    with pytest.raises(UsageError, match="--input and --input-from are both given"):
        flopprof.count_flops(f"{code}:Speech", input="3x8", input_from=f"{code}:one")
    with pytest.raises(UsageError, match="no function 'gone'"):
        flopprof.count_flops(f"{code}:Speech", input_from=f"{code}:gone")
    with pytest.raises(ModelError, match="raises raised KeyError: 'no data'"):
        flopprof.count_flops(f"{code}:Speech", input_from=f"{code}:raises")


def test_a_model_that_needs_more_than_one_input_says_which(code):
    with pytest.raises(UsageError, match="it takes 2 inputs, x, sr") as caught:
        flopprof.count_flops(f"{code}:Speech")

    assert "--input x=… --input sr=…" in caught.value.remedy
    assert "--input-from FILE.py:FUNCTION" in caught.value.remedy


def test_a_number_where_a_tensor_is_wanted_says_how_a_tensor_is_written(code):
    with pytest.raises(ModelError) as caught:
        flopprof.count_flops("torch.nn:Linear(16, 2)", input="16")

    assert "--input 16:float32" in caught.value.remedy
