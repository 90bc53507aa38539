"""The convolution of all levels gives PyTorch's numbers whichever way it is computed, for any shape, type and transform."""
import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from integrated_cell.training import convolve
from integrated_cell.training.convolve import CONV, CONV_T, Down, Up, Weights

WAYS = {"as PyTorch": (lambda *_: False, lambda *_: False), "one matrix product": (lambda *_: True, lambda *_: False), "halves": (lambda *_: False, lambda *_: True)}


@pytest.fixture(params=list(WAYS))
def way(request, monkeypatch):
    few, many = WAYS[request.param]
    monkeypatch.setattr(convolve, "_few", few)
    monkeypatch.setattr(convolve, "_many", many)
    return request.param


def layers(d, up, **kwargs):
    "One of ours and PyTorch's own with the same weights"
    torch.manual_seed(0)
    ours = (CONV_T[d](4, 3, 4, 2, 1, **kwargs) if up else CONV[d](3, 4, 4, 2, 1, **kwargs)).double()
    plain = copy.deepcopy(ours)
    plain.__class__ = type(ours).__mro__[1]
    return ours, plain


@pytest.mark.parametrize("shape", [(4, 6), (5, 9), (2, 3), (4, 6, 8), (5, 7, 4), (2, 2, 2), (3, 2, 5)])
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_pytorch(way, shape, up, bias):
    more = dict(output_padding=tuple(s % 2 for s in shape)) if up else {}
    ours, plain = layers(len(shape), up, bias=bias, **more)
    x = torch.randn(2, 4 if up else 3, *(s//2 for s in shape) if up else shape, dtype=torch.double)
    xs = [x.clone().requires_grad_() for _ in range(2)]
    ys = [f(v) for f, v in zip((ours, plain), xs)]
    assert ys[0].shape == ys[1].shape and torch.allclose(*ys, atol=1e-12)
    if up: assert ys[0].shape[2:] == shape
    g = torch.randn_like(ys[0])
    for y in ys: y.backward(g)
    assert torch.allclose(xs[0].grad, xs[1].grad, atol=1e-12)
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True): assert torch.allclose(p.grad, q.grad, atol=1e-11)


@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 5)])
def test_derivatives_of_derivatives(way, shape):
    torch.manual_seed(0)
    x, w = torch.randn(2, 2, *shape, dtype=torch.double, requires_grad=True), torch.randn(3, 2, *[4]*len(shape), dtype=torch.double, requires_grad=True)
    y = torch.randn_like(Down.apply(x, w)).requires_grad_()
    for f, args in [(Down.apply, (x, w)), (lambda y, w: Up.apply(y, w, shape), (y, w)), (Weights.apply, (x, y))]:
        assert torch.autograd.gradgradcheck(f, args, fast_mode=len(shape) == 3)  # in 3D by a random direction, in seconds


@pytest.mark.parametrize("up", [False, True])
def test_many_models_at_once(way, up):
    nets = [layers(3, up)[0] for _ in range(3)]
    for i, net in enumerate(nets): nn.init.normal_(net.weight, i)
    x = torch.randn(3, 2, 4 if up else 3, 4, 4, 6, dtype=torch.double)
    weights, buffers = stack_module_state(nets)
    at_once = vmap(lambda w, b, v: functional_call(nets[0], (w, b), (v,)))(weights, buffers, x)
    assert torch.allclose(at_once, torch.stack([f(v) for f, v in zip(nets, x)]), atol=1e-12)


def test_half_precision(way):
    ours, plain = (f.float() for f in layers(3, False))
    x = torch.rand(2, 3, 4, 6, 8)
    with torch.autocast("cpu", torch.bfloat16): a, b = ours(x), plain(x)
    assert a.dtype == b.dtype == torch.bfloat16 and torch.allclose(a.float(), b.float(), atol=.02)
    a.sum().backward()
    assert ours.weight.grad.dtype == torch.float32


def test_other_kernels_are_left_to_pytorch(way):
    x = torch.rand(1, 3, 6, 8)
    for kwargs in (dict(kernel_size=3, stride=2, padding=1), dict(kernel_size=4, stride=1, padding=1), dict(kernel_size=4, stride=2, padding=0), dict(kernel_size=4, stride=2, padding=1, groups=3)):
        ours = CONV[2](3, 6, **kwargs)
        assert ours(x).equal(nn.Conv2d.forward(ours, x))


def test_few_positions_and_large_images_are_found():
    assert convolve._few(8, 2**26, torch.zeros(1)) and not convolve._few(768, 2**23, torch.zeros(1)) and not convolve._few(8, 2**26, torch.zeros(1, device="meta"))
    image, flat = torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 2, 1, 1)
    assert convolve._many(4096, image) and not convolve._many(4096, flat) and not convolve._many(4095, image)
    assert not convolve._many(4096, image.bfloat16())
    with torch.autocast("cpu", torch.bfloat16): assert not convolve._many(4096, image)


def test_in_half_precision_the_channels_of_a_voxel_lie_side_by_side():
    x, (down, plain), (up, _) = torch.rand(2, 3, 16, 32, 32), layers(3, False), layers(3, True)
    down, plain, up = down.float(), plain.float(), up.float()
    with torch.autocast("cpu", torch.bfloat16):
        y, known = down(x), plain(x)
        assert torch.allclose(y.float(), known.float(), atol=.02)
        for z in (y, up(y)): assert z.is_contiguous(memory_format=torch.channels_last_3d)
        y.float().square().sum().backward(); known.float().square().sum().backward()
    assert torch.allclose(down.weight.grad, plain.weight.grad, rtol=.02, atol=.02*plain.weight.grad.abs().max().item())


def test_gradients_that_nobody_waits_for_are_not_computed(way, monkeypatch):
    if way == "as PyTorch": monkeypatch.setattr(convolve, "_pays", lambda *_: True)
    calls, weights = [], convolve._weights
    monkeypatch.setattr(convolve, "_weights", lambda x, y: calls.append(1) or weights(x, y))
    net, x = layers(3, False)[0], torch.randn(2, 3, 4, 4, 6, dtype=torch.double, requires_grad=True)
    y = net(x).sum()
    y.backward(inputs=[x], retain_graph=True)
    assert not calls and net.weight.grad is None and x.grad is not None
    y.backward()
    assert len(calls) == 1 and net.weight.grad is not None


@pytest.mark.parametrize("shape", [(2, 8, 12), (4, 2, 3), (3, 2, 5), (2, 4), (7, 1), (1, 2)])
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("plan", [(3, 1, 1), (4, 2, 1), (5, 2, 2)])
@pytest.mark.parametrize("kind", ["autocast", "weights too"])
def test_half_precision_is_right_where_an_image_is_narrower_than_the_kernel(shape, up, plan, kind):
    torch.manual_seed(0)
    ours = (CONV_T if up else CONV)[len(shape)](16, 16, *plan)
    if not up: shape = tuple(max(s, plan[0] - 2*plan[2]) for s in shape)  # that something is left of it
    x, slopes = torch.randn(4, 16, *shape), []
    for half in (False, True):
        layer = copy.deepcopy(ours).to(torch.bfloat16 if half and kind == "weights too" else torch.float32)
        x_h = x.detach().to(next(layer.parameters()).dtype, copy=True).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half and kind == "autocast"): y = layer(x_h)
        assert y.dtype == (torch.bfloat16 if half else torch.float32)
        y.float().square().sum().backward()
        slopes.append([v.grad.float() for v in (x_h, *layer.parameters())])
    for a, b in zip(*slopes, strict=True): assert (a - b).norm() < .03*a.norm()
