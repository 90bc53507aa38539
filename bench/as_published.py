"""One training step of each phase as the original code schedules it, in our own words: the yardstick of the other benchmarks.

The updates are those of `reference.step` and `conditional.step`: tests/test_as_published.py holds the weights after a step
together, in double precision with the same Adam on both sides. (Running means of batch norms differ, since the original passes
each batch twice through the encoder.) What differs is the work: two encoder, four decoder and five DecD evaluations a step,
float32, contiguous tensors, PyTorch's own layers, no compilation, Adam without fusion, no scheduling by Fabric.
"""
import torch
import torch.nn.functional as F
from torch import nn

from integrated_cell.training.losses import bce, mse, nll
from integrated_cell.data.cells import CHANNELS_R
from integrated_cell.integration.reference import GEN, OBS


def plain(model):
    "The model with PyTorch's own layers, in place"
    for m in model.modules():
        for kind in (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.PReLU):
            if isinstance(m, kind): m.__class__ = kind
    return model


def adam(nets, lr=2e-4, lr_enc_d=1e-2):
    "The original's four optimisers; EncD has its own rate"
    return {n: torch.optim.Adam(net.parameters(), lr_enc_d if n.startswith("enc_d") else lr, (.5, .999), foreach=False, fused=False) for n, net in nets.items()}


def move(opt, loss):
    opt.zero_grad()
    loss.backward(inputs=[p for g in opt.param_groups for p in g["params"]])
    opt.step()


def halves(net, z_gen, z): return net(torch.cat([z_gen, z])).split([len(z_gen), len(z)])


def reference_step(nets, opts, x, z_r_gen, gamma_enc=1e-4, gamma_dec=1e-5):
    "Algorithm 1"
    enc, dec, enc_d, dec_d = (nets[n] for n in ("enc_r", "dec_r", "enc_d_r", "dec_d_r"))
    x_r = x[:, CHANNELS_R]
    with torch.no_grad(): z_r = enc(x_r); x_dec, x_gen = torch.sigmoid(dec(z_r)), torch.sigmoid(dec(z_r_gen))
    v_gen, v_obs = halves(enc_d, z_r_gen, z_r)
    move(opts["enc_d_r"], bce(v_gen, GEN) + bce(v_obs, OBS))
    move(opts["dec_d_r"], bce(dec_d(x_r), OBS) + (bce(dec_d(x_dec), GEN) + bce(dec_d(x_gen), GEN))/2)

    for name in ("enc_r", "dec_r"): opts[name].zero_grad()
    z_r = enc(x_r)
    x_hat = dec(z_r)
    (bce(x_hat, x_r) + gamma_enc*bce(halves(enc_d, z_r_gen, z_r)[1], GEN)).backward(retain_graph=True, inputs=[*enc.parameters(), *dec.parameters()])
    opts["enc_r"].step()
    loss_dec = bce(dec_d(torch.sigmoid(x_hat)), OBS) + bce(dec_d(torch.sigmoid(dec(z_r_gen))), OBS)
    (gamma_dec*loss_dec).backward(inputs=list(dec.parameters()))  # beside what reconstruction left there
    opts["dec_r"].step()


def conditional_step(nets, opts, x, y, z_r, z_r_gen, z_s_gen, y_gen, gamma_enc=1e-4, gamma_dec=1e-5):
    "Algorithm 2; z_r is the target from phase 1, which the original computes once for all cells"
    enc, dec, enc_d, dec_d = (nets[n] for n in ("enc_rs", "dec_rs", "enc_d_s", "dec_d_rs"))
    with torch.no_grad():
        z_r_hat, y_hat, z_s = enc(x)
        k = y_hat.shape[1]
        given = z_r_gen, F.one_hot(y_gen, k).to(x.dtype), z_s_gen
        x_dec, x_gen = torch.sigmoid(dec(z_r_hat, F.softmax(y_hat, 1), z_s)), torch.sigmoid(dec(*given))
    gen, obs = halves(enc_d, z_s_gen, z_s)
    move(opts["enc_d_s"], nll(gen, k) + nll(obs, y))
    move(opts["dec_d_rs"], nll(dec_d(x), y) + (nll(dec_d(x_dec), k) + nll(dec_d(x_gen), k))/2)

    for name in ("enc_rs", "dec_rs"): opts[name].zero_grad()
    z_r_hat, y_hat, z_s = enc(x)
    x_hat = dec(z_r_hat, F.softmax(y_hat, 1), z_s)
    loss_enc = bce(x_hat, x) + mse(z_r, z_r_hat) + nll(y_hat, y) + gamma_enc*nll(halves(enc_d, z_s_gen, z_s)[1], k)
    loss_enc.backward(retain_graph=True, inputs=[*enc.parameters(), *dec.parameters()])
    opts["enc_rs"].step()
    loss_dec = nll(dec_d(torch.sigmoid(x_hat)), y) + nll(dec_d(torch.sigmoid(dec(*given))), y_gen)
    (gamma_dec*loss_dec).backward(inputs=list(dec.parameters()))
    opts["dec_rs"].step()
