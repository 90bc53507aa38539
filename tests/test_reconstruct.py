"What no single lesson cell of `reconstruct` shows: other libraries on harder problems, independence of rows, 3D, bad input"
import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn

from integrated_cell.synthesis.reconstruct import direction, frozen, lbfgs, nearest, noise_nll, reconstruct
from integrated_cell.results import BadInput
from integrated_cell.synthesis.towers import Towers

EXACT = dict(n_steps=1000, tol=0, tol_grad=1e-9)


def one_sentence(e): return "\n" not in str(e.value) and len(str(e.value)) > 20


def contrasty(shape, n_latent=4, greens=(1,)):
    torch.manual_seed(0)
    gen = Towers(shape, 1, greens, n_filters=2, n_latent=n_latent)
    for tower in (gen.red, *gen.greens): tower.ups[-1].weight.data *= 30
    for _ in range(9): gen(torch.randn(64, gen.n_latent_r), torch.randn(64, gen.n_latent_s))
    return gen.eval()


@torch.no_grad()
def drawn(gen, n, noise=0.):
    torch.manual_seed(1)
    x = gen(torch.randn(n, gen.n_latent_r), torch.randn(n, gen.n_latent_s))
    return (x + noise*torch.randn_like(x)).clamp(0, 1)


def test_badly_conditioned_quadratics():
    rng = np.random.default_rng(0)
    q = [np.linalg.qr(rng.normal(size=(20, 20)))[0] for _ in range(12)]
    A = torch.tensor(np.stack([v @ np.diag(np.geomspace(1, 10**(k % 5), 20)) @ v.T for k, v in enumerate(q)]))
    b = torch.tensor(rng.normal(size=(12, 20)))
    found = lbfgs(lambda z, rows: torch.einsum("ni,nij,nj->n", z, A[rows], z)/2 - (b[rows]*z).sum(1), torch.zeros(12, 20).double(), **EXACT)
    assert torch.allclose(found.z, torch.linalg.solve(A, b), atol=1e-5)
    assert found.steps[0] < 5 < found.steps[4]  # the first is a sphere; each has its own stop


def test_rosenbrock_as_scipy_in_no_more_than_twice_the_evaluations():
    start = torch.tensor(np.random.default_rng(0).uniform(-2, 2, (10, 8)))
    found = lbfgs(lambda z, rows: (100*(z[:, 1:] - z[:, :-1]**2)**2 + (1 - z[:, :-1])**2).sum(1), start, **EXACT)
    theirs = [optimize.minimize(optimize.rosen, z, jac=optimize.rosen_der, method="L-BFGS-B", options=dict(ftol=0, gtol=1e-9, maxiter=1000)) for z in start.numpy()]
    minima = np.array([optimize.rosen_der(z) for z in found.z.numpy()])
    assert abs(minima).max() < 1e-6 and np.allclose(found.f, [r.fun for r in theirs], atol=1e-9)
    assert found.evaluations.sum() < 2*sum(r.nfev for r in theirs)


def test_no_worse_than_pytorch_image_by_image():
    gen = contrasty((16, 24), 6)
    x, z = drawn(gen, 4, .01), torch.randn(4, 12)
    with frozen(gen):
        loss = lambda z, rows: (gen(z[:, :6], z[:, 6:]) - x[rows]).square().flatten(1).mean(1)
        ours, theirs = lbfgs(loss, z, 30, tol=0).f, []
        for i in range(4):
            a = z[i:i + 1].clone().requires_grad_()
            opt = torch.optim.LBFGS([a], max_iter=30, history_size=10, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe")

            def closure():
                opt.zero_grad()
                value = loss(a, torch.tensor([i])).sum()*x[0].numel()
                value.backward()
                return value
            opt.step(closure)
            theirs.append(loss(a, torch.tensor([i])).item())
    assert (ours.numpy() <= 1.02*np.array(theirs)).mean() >= .75 and np.median(ours.numpy()**.5) <= 1.01*np.median(np.array(theirs)**.5)


def test_a_row_goes_the_same_way_alone_in_a_batch_and_in_pieces():
    gen = contrasty((12, 16))
    x = drawn(gen, 5, .02)
    every = reconstruct(gen, x, restarts=2)
    for n, batch in ((5, 3), (2, 256), (1, 1)):
        some = reconstruct(gen, x[:n], restarts=2, batch_size=batch)
        assert np.allclose(some["error"], every["error"][:n], rtol=2e-3)


def test_what_has_stopped_costs_nothing():
    seen = []

    def loss(z, rows):
        seen.append(rows.clone())
        return (z.square().sum(1) - 1).square()*(1 + rows)
    z = torch.randn(6, 3).double()
    z[2] = 0  # no slope: stops before the first step
    found = lbfgs(loss, z, 30)
    assert np.array_equal(np.bincount(torch.cat(seen)), found.evaluations) and found.evaluations[2] == 1 and found.steps[2] == 0
    assert len(set(found.evaluations.tolist())) > 1 and (found.steps <= 30).all()


def test_steps_into_what_is_not_finite_are_taken_back():
    found = lbfgs(lambda z, rows: z[:, 0] - z[:, 0].log(), torch.tensor([[.01], [5.], [100.]]).double(), **EXACT)  # NaN below 0
    assert torch.allclose(found.z, torch.ones(3, 1).double(), atol=1e-6)


def test_no_more_steps_than_asked_for():
    gen = contrasty((12, 16))
    x = drawn(gen, 3)
    assert (reconstruct(gen, x, n_steps=4, restarts=2)["steps"] <= 8).all() and (reconstruct(gen, x, True, n_steps=4, restarts=1)["steps"] <= 8).all()
    start = reconstruct(gen, x, n_steps=0, restarts=1)
    assert np.allclose(np.c_[start["z_r"], start["z_s"]], np.random.default_rng(0).standard_normal((3, 8), np.float32))
    assert np.allclose(start["nll"], noise_nll(np.c_[start["z_r"], start["z_s"]]))


@pytest.mark.parametrize("shape, greens", [((12, 16), (1,)), ((8, 12, 10), (1,)), ((12, 16), (1, 1, 1))])
def test_any_shape_and_any_number_of_greens(shape, greens):
    gen = contrasty(shape, 3, greens)
    x = drawn(gen, 3)
    for separable in (False, True):
        found = reconstruct(gen, (x*255).round().byte().numpy(), separable, restarts=3)
        again = reconstruct(gen, (x*255).round().byte(), separable, restarts=3)
        assert (found["error"] < .01).all() and all(np.array_equal(found[k], again[k]) for k in found)
        by_hand = ((found["image"] - (x*255).round().numpy()/255)**2).reshape(3, 1 + len(greens), -1).mean(2)
        assert np.allclose(found["error"], by_hand.mean(1)**.5, atol=1e-6) and np.allclose(found["error_green"], by_hand[:, 1:].mean(1)**.5, atol=1e-6)
        with torch.no_grad(): assert np.allclose(gen(torch.tensor(found["z_r"]), torch.tensor(found["z_s"])), found["image"], atol=1e-6)


def test_more_starts_are_never_worse():
    gen = contrasty((12, 16))
    x = drawn(gen, 1, .01)
    errors = [reconstruct(gen, x, restarts=k, n_steps=3)["error"][0] for k in (1, 2, 4, 8)]
    assert all(b <= a*(1 + 1e-5) for a, b in zip(errors, errors[1:])) and errors[-1] < errors[0]


def test_the_generator_is_left_as_it_was_even_after_an_error():
    gen = contrasty((12, 16)).train()
    before = {k: v.clone() for k, v in gen.state_dict().items()}
    reconstruct(gen, drawn(gen.eval(), 2), n_steps=2, restarts=1)
    gen.train()
    with pytest.raises(BadInput): reconstruct(gen, np.zeros((0, 2, 12, 16), np.uint8))
    assert gen.training and all(p.requires_grad for p in gen.parameters()) and all(torch.equal(v, gen.state_dict()[k]) for k, v in before.items())


def test_what_cannot_be_reconstructed_is_refused_in_one_sentence():
    gen, x = contrasty((12, 16)), np.full((3, 2, 12, 16), .5, np.float32)
    broken = x.copy()
    broken[1, 0, 3, 4] = np.nan
    no_green = Towers((12, 16), 2, (), n_filters=2, n_latent=3)
    for kwargs, word in [(dict(gen=gen, images=x[:, :, :, :15]), "shape"), (dict(gen=gen, images=x[:, :1]), "shape"), (dict(gen=gen, images=[]), "empty"), (dict(gen=gen, images=x[:0]), "empty"),
                         (dict(gen=gen, images=broken), "image 1 of 3"), (dict(gen=gen, images=x*255), "uint8"), (dict(gen=no_green, images=x, separable=True), "green noise"),
                         (dict(gen=gen, images=x, restarts=0), "restarts")]:
        with pytest.raises(BadInput) as e: reconstruct(**kwargs)
        assert one_sentence(e) and word in str(e.value)
    assert reconstruct(no_green, x, n_steps=2, restarts=1)["z_s"].shape == (3, 0)
    with pytest.raises(BadInput) as e: lbfgs(lambda z, rows: z.sum(1)/0*0, torch.ones(2, 2))
    assert one_sentence(e)
    for a, b in ((x, x[:0]), (x[:0], x), (x, x[:, :, 1:])):
        with pytest.raises(BadInput) as e: nearest(a, b)
        assert one_sentence(e)


def test_without_history_the_direction_is_the_gradient():
    g, none = torch.randn(4, 7), torch.zeros(4, 3, 7)
    assert torch.equal(direction(g, none, none, torch.zeros(4, 3)), -g)


class Line(nn.Module):
    "One weight, so that the red noise is the red image's brightness and the green noise the green's beyond it"
    shape, n_latent_r, n_latent_s = (6, 6), 1, 1
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(.1))
    def forward(self, z_r, z_s): return (.5 + self.w*torch.stack([z_r, z_r + z_s], 1))[..., None].expand(-1, 2, 6, 6)


def test_a_linear_generator_has_known_answers():
    x = torch.full((1, 2, 6, 6), .5)
    x[:, 0], x[:, 1] = .5 + .1*.7, .5 + .1*(.7 - 1.2)
    for separable in (False, True):
        found = reconstruct(Line(), x, separable, restarts=1)
        assert np.allclose(found["z_r"], .7, atol=1e-3) and np.allclose(found["z_s"], -1.2, atol=1e-3)
        assert np.allclose(found["nll"], (.7**2 + 1.2**2)/2 + np.log(2*np.pi), atol=1e-2)
