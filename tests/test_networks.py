"""Shapes of every network at every shape of the study, and the paper's sizes at full width."""
import pytest
import torch
from torch import nn

from integrated_cell.integration.conditional import Conditional
from integrated_cell.training.networks import Dec, DecD, Enc
from integrated_cell.integration.reference import Reference
from integrated_cell.results import BadInput

SHAPES = [(64, 96, 128), (32, 48, 64), (16, 64, 96), (17, 50, 33), (48, 80), (96, 96)]


@pytest.mark.parametrize("shape", SHAPES)
def test_decoder_returns_the_encoders_shape(shape):
    x = torch.rand(2, 3, *shape)
    z_r, y, z_s = Enc(shape, 3, (6, 4, 5), width=1/32)(x)
    assert (z_r.shape, y.shape, z_s.shape) == ((2, 6), (2, 4), (2, 5))
    assert Dec(shape, 3, 15, width=1/32)(z_r, y, z_s).shape == x.shape
    assert DecD(shape, 3, 5, width=1/32)(x).shape == (2, 5)


def out_channels(net): return [m.out_channels for m in net.modules() if isinstance(m, (nn.Conv3d, nn.ConvTranspose3d))]
def out_features(net): return [m.out_features for m in net.modules() if isinstance(m, nn.Linear)]
def n_norms(net): return sum(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm3d)) for m in net.modules())


def test_the_tables_at_the_papers_shape_and_width():
    with torch.device("meta"):
        r, c = Reference((64, 96, 128)), Conditional((64, 96, 128), [str(k) for k in range(11)])
    assert out_channels(r.enc_r) == out_channels(c.enc_rs) == [64, 128, 256, 512, 1024, 1024]  # S1, S5
    assert out_features(r.enc_r) == [128] and sorted(out_features(c.enc_rs)) == [11, 128, 128]
    assert r.dec_r.fc.out_features == 1024*2 and r.dec_r.fc.in_features == 128  # S2
    assert out_channels(r.dec_r) == [1024, 512, 256, 128, 64, 2] and out_channels(c.dec_rs) == [1024, 512, 256, 128, 64, 3]  # S2, S6
    assert out_features(r.enc_d_r) == [1024, 1024, 512, 1] and out_features(c.enc_d_s) == [1024, 1024, 512, 12]  # S3, S7
    assert out_channels(r.dec_d_r) == out_channels(c.dec_d_rs) == [64, 128, 256, 512, 512]  # S4, S8
    assert out_features(r.dec_d_r) == [1] and out_features(c.dec_d_rs) == [12]
    assert (n_norms(r.enc_r), n_norms(r.dec_r), n_norms(r.enc_d_r), n_norms(r.dec_d_r), n_norms(c.dec_d_rs)) == (6, 6, 2, 4, 5)


def test_wrong_shape_is_one_sentence():
    with pytest.raises(BadInput, match="do not fit a network for"): Enc((16, 24, 32), 3, (4,), 1/32)(torch.rand(2, 3, 16, 24, 16))
    with pytest.raises(BadInput, match="two or three sides"): Enc((24,), 3, (4,), 1/32)
