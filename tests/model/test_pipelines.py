"""Pipelines of diffusers: each part is called once, and a generation is told; numbers by hand."""

import json
import sys
import types

from torch import nn

import flopprof
from tests.model.test_contents import write_safetensors


class UNet2DModel(nn.Module):
    """A denoiser of one convolution, as diffusers would make it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)

    @classmethod
    def from_config(cls, _config):
        return cls()

    def forward(self, sample, timestep):
        return self.conv(sample) + 0 * timestep


class AutoencoderKL(nn.Module):
    """A decoder of one convolution; its encoder is never called."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 3, bias=False)
        self.decoder = nn.Conv2d(4, 3, 1, bias=False)

    @classmethod
    def from_config(cls, _config):
        return cls()

    def decode(self, z):
        return self.decoder(z)


class DDPMPipeline:
    def __call__(self, num_inference_steps=10):
        raise NotImplementedError


def write_pipeline(folder):
    index = {
        "_class_name": "DDPMPipeline",
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DModel"],
        "safety_checker": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    for part, cls, sizes in (
        ("unet", UNet2DModel, {"in_channels": 4, "sample_size": 8}),
        ("vae", AutoencoderKL, {"latent_channels": 4}),
        ("safety_checker", UNet2DModel, {}),
    ):
        (folder / part).mkdir()
        config = {"_class_name": cls.__name__, **sizes}
        (folder / part / "config.json").write_text(json.dumps(config))
        path = folder / part / "diffusion_pytorch_model.safetensors"
        write_safetensors(path, cls().state_dict())


def test_a_pipeline_counts_each_part_once_and_tells_a_generation(tmp_path, monkeypatch):
    write_pipeline(tmp_path)
    made = types.ModuleType("diffusers")
    for cls in (UNet2DModel, AutoencoderKL, DDPMPipeline):
        setattr(made, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "diffusers", made)

    run = flopprof.count_flops(tmp_path).run

    # 4·8·8 outputs of 4·3·3 multiply-adds; the timestep's product and add, one each per output.
    unet_matmul, unet_vector = 2 * 256 * 36, 256 + 1
    decoder = 2 * 3 * 64 * 4  # 3·8·8 outputs of 4
    assert run.totals.matmul_flops == unet_matmul + decoder
    told = next(t for t in run.provenance.warning_texts if "one call of each part" in t)
    step = unet_matmul + unet_vector
    assert step == 18_689
    assert "unet 18.7 kFLOPs a step, vae 1.54 kFLOPs" in told
    # Ten steps: 1,536 + 10 × 18,689; with guidance every step twice.
    assert "in 10 steps takes 1.54 kFLOPs + 10 × 18.7 kFLOPs = 188 kFLOPs" in told
    assert told.endswith("375 kFLOPs")
    assert any("not counted: safety_checker" in t for t in run.provenance.warning_texts)
