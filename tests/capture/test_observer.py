"""What measuring changed is said: other ops under our ranges."""

import secrets

import torch
from torch import nn
from torch.nn.modules.module import _global_forward_hooks

import flopprof
from tests.builders import changed_ops


class Shy(nn.Module):
    """Does more work while it is watched, as a fast path that looks for hooks does."""

    def forward(self, x):
        return x.exp().exp() if _global_forward_hooks else x.exp()


class Fickle(nn.Module):
    """Takes another path each time, watched or not."""

    def forward(self, x):
        for _ in range(1 + secrets.randbelow(1000)):
            x = x.exp()
        return x


def run_of(model):
    return flopprof.profile(model, (torch.ones(4),), repeats=1, warmup=1, ceilings=False)


def test_ops_that_run_only_under_our_ranges_mark_the_result():
    run = run_of(Shy())

    assert changed_ops(run) == {"aten::exp": 1}
    assert "tracing by module changed which ops run: aten::exp +1" in run.provenance.warning_texts
    assert "and other ops" in " ".join(run.report().split())


def test_the_same_ops_with_and_without_ranges_are_said_to_be():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    run = flopprof.profile(layer, (1, 2, 8), repeats=1, warmup=1, ceilings=False)

    assert changed_ops(run) == {}
    assert "and no other ops" in " ".join(run.report().split())


def test_a_model_that_takes_another_path_each_time_is_no_observer_effect():
    run = run_of(Fickle())

    assert changed_ops(run) is None
    assert not any("tracing by module" in text for text in run.provenance.warning_texts)
