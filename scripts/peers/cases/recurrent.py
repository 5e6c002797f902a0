"""Recurrent layers: I = 8 inputs, H = 6 hidden, T = 5 steps, B = 3 sequences, unless said."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from peers.case import Calls, Case, Subject, calling, randn

SIZE = (5, 3, 8)
ROWS = 5 * 3
CELL = 30 * ROWS * 6  # more than gates, sums and state of any cell, per direction and layer


def packed(kind: type[nn.RNNBase], **options: object) -> Subject:
    """Return a layer over three sequences of 5, 3 and 2 steps."""
    layer = kind(8, 6, bias=False, **options)

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m.layer(pack_padded_sequence(x, [5, 3, 2]))[0].data

    return calling(Calls(forward, layer=layer), randn(*SIZE))


def looped(cell: nn.Module, with_memory: bool = False) -> Subject:
    """Return a cell that is called at each of five steps."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(3, 6)
        held = (state, state) if with_memory else state
        for step in x:
            held = m.cell(step, held)
        return held[0] if with_memory else held

    return calling(Calls(forward, cell=cell), randn(*SIZE))


def lstm_by_hand() -> Subject:
    """Return an LSTM made of one linear layer over input and state."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        h = c = torch.zeros(3, 6)
        for step in x:
            i, f, g, o = m.gates(torch.cat([step, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h

    return calling(Calls(forward, gates=nn.Linear(14, 24, bias=False)), randn(*SIZE))


CASES = [
    Case("lstm", 2 * ROWS * 24 * (8 + 6), "15 steps × 4·6 gates × (8 + 6)", needs="recurrent layer",
         vector_flops=CELL, build=lambda: calling(nn.LSTM(8, 6, bias=False), randn(*SIZE))),
    Case("lstm_bias", 2 * ROWS * 24 * (8 + 6), "15 steps × 4·6 gates × (8 + 6)",
         needs="recurrent layer", vector_flops=CELL,
         build=lambda: calling(nn.LSTM(8, 6), randn(*SIZE))),
    Case("gru", 2 * ROWS * 18 * (8 + 6), "15 steps × 3·6 gates × (8 + 6)", needs="recurrent layer",
         vector_flops=CELL, build=lambda: calling(nn.GRU(8, 6, bias=False), randn(*SIZE))),
    Case("rnn", 2 * ROWS * 6 * (8 + 6), "15 steps × 6 × (8 + 6)", needs="recurrent layer",
         vector_flops=CELL, build=lambda: calling(nn.RNN(8, 6, bias=False), randn(*SIZE))),
    Case("lstm_batch_first", 2 * ROWS * 24 * 14, "15 steps × 24 × 14", needs="recurrent layer",
         vector_flops=CELL,
         build=lambda: calling(nn.LSTM(8, 6, bias=False, batch_first=True), randn(3, 5, 8))),
    Case("lstm_two_layers", 2 * ROWS * 24 * (14 + 12), "15 steps × 24 × (8 + 6, then 6 + 6)",
         needs="recurrent layer", vector_flops=2 * CELL,
         build=lambda: calling(nn.LSTM(8, 6, 2, bias=False), randn(*SIZE))),
    Case("lstm_bidirectional", 2 * 2 * ROWS * 24 * 14, "two directions × 15 × 24 × 14",
         needs="recurrent layer", vector_flops=2 * CELL,
         build=lambda: calling(nn.LSTM(8, 6, bias=False, bidirectional=True), randn(*SIZE))),
    Case("lstm_bidirectional_two_layers", 2 * 2 * ROWS * 24 * (14 + 18),
         "two directions × 15 × 24 × (8 + 6, then 12 + 6)", needs="recurrent layer",
         vector_flops=4 * CELL,
         build=lambda: calling(nn.LSTM(8, 6, 2, bias=False, bidirectional=True), randn(*SIZE))),
    Case("lstm_projection", 2 * ROWS * (24 * (8 + 4) + 6 * 4),
         "15 steps × (24 × (8 + 4), and 6 × 4 to project)", needs="recurrent layer",
         vector_flops=CELL,
         build=lambda: calling(nn.LSTM(8, 6, bias=False, proj_size=4), randn(*SIZE))),
    Case("lstm_unbatched", 2 * 5 * 24 * 14, "5 steps × 24 × 14", needs="recurrent layer unbatched",
         vector_flops=CELL, build=lambda: calling(nn.LSTM(8, 6, bias=False), randn(5, 8))),
    Case("lstm_initial_state", 2 * ROWS * 24 * 14, "15 steps × 24 × 14", needs="recurrent layer",
         vector_flops=CELL,
         build=lambda: calling(nn.LSTM(8, 6, bias=False), randn(*SIZE),
                               (randn(1, 3, 6), randn(1, 3, 6)))),
    Case("lstm_packed", 2 * 10 * 24 * 14, "5 + 3 + 2 steps × 24 × 14", needs="packed sequences",
         vector_flops=CELL, build=lambda: packed(nn.LSTM)),
    Case("gru_packed_bidirectional", 2 * 2 * 10 * 18 * 14, "two directions × 10 × 18 × 14",
         needs="packed sequences", vector_flops=2 * CELL,
         build=lambda: packed(nn.GRU, bidirectional=True)),
    Case("lstm_cell", 2 * ROWS * 24 * 14, "5 steps of 3 × 24 × 14", needs="recurrent cell",
         vector_flops=CELL, build=lambda: looped(nn.LSTMCell(8, 6, bias=False), True)),
    Case("gru_cell", 2 * ROWS * 18 * 14, "5 steps of 3 × 18 × 14", needs="recurrent cell",
         vector_flops=CELL, build=lambda: looped(nn.GRUCell(8, 6, bias=False))),
    Case("rnn_cell", 2 * ROWS * 6 * 14, "5 steps of 3 × 6 × 14", needs="recurrent cell",
         vector_flops=CELL, build=lambda: looped(nn.RNNCell(8, 6, bias=False))),
    Case("lstm_by_hand", 2 * ROWS * 14 * 24, "5 steps of 3 rows × 14 × 24", needs="linear",
         vector_flops=CELL, build=lstm_by_hand),
]  # fmt: skip
