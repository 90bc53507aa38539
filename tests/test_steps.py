"""One round of Algorithms 1 and 2 against autograd written by hand, in double precision: each network moves, only by its own gradient."""
import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric

from integrated_cell.integration import conditional, reference
from integrated_cell.results import BadInput

LR, GAMMA_ENC, GAMMA_DEC, SHAPE = .1, .3, .2, (4, 6, 8)


@pytest.fixture
def fabric(): return Fabric(accelerator="cpu", precision="64-true")


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def H(p, v): return -(v*torch.log(p) + (1 - v)*torch.log(1 - p)).mean()
def log_softmax_at(u, y): return (u - torch.logsumexp(u, 1, keepdim=True))[torch.arange(len(u)), y]
def descended(net, loss):
    "What plain descent of `loss` makes of the parameters of `net`"
    return [p - LR*g for p, g in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()), retain_graph=True))]
def put(net, values):
    with torch.no_grad():
        for p, v in zip(net.parameters(), values, strict=True): p.copy_(v)


def one_step(model, step, batch, fabric, only=None):
    "The model after `step`; with `only`, all learning rates but one are zero"
    model = copy.deepcopy(model)
    names = [n for n, net in model.named_children() if any(p.requires_grad for p in net.parameters())]
    nets = {n: fabric.setup_module(getattr(model, n)) for n in names}
    opts = {n: fabric.setup_optimizers(torch.optim.SGD(getattr(model, n).parameters(), LR if only in (None, n) else 0.)) for n in names}
    torch.manual_seed(1)
    if isinstance(model, conditional.Conditional): step = partial(step, enc_r=model.enc_r)
    losses = step(nets, opts, batch, fabric, gamma_enc=GAMMA_ENC, gamma_dec=GAMMA_DEC)
    return model, losses


def same(net, values): return all(torch.allclose(p, v, rtol=0, atol=1e-10) for p, v in zip(net.parameters(), values, strict=True))
def moved(a, b): return {n for n, net in a.named_children() if any((p != q).any() for p, q in zip(net.parameters(), getattr(b, n).parameters()))}


def batch(k=3, n=5):
    g = torch.Generator().manual_seed(2)
    return dict(x=torch.rand(n, 3, *SHAPE, generator=g), y=torch.tensor([0, 1, 2, 1, 0]))


def test_algorithm_1(fabric):
    torch.manual_seed(0)
    model = reference.Reference(SHAPE, n_latent=4, width=1/64, noise=0.)
    b = batch()
    after, losses = one_step(model, reference.step, b, fabric)
    m = copy.deepcopy(model)
    torch.manual_seed(1)
    x = b["x"][:, [0, 2]]
    z = m.enc_r(x); z_gen = torch.randn_like(z)
    x_hat, x_gen = torch.sigmoid(m.dec_r(z)), torch.sigmoid(m.dec_r(z_gen))
    D = lambda net, u: torch.sigmoid(net(u))
    new = {}
    both = D(m.enc_d_r, torch.cat([z_gen, z]))  # one batch: they share the statistics of the batch norms
    loss_enc_d = H(both[:5], 0.) + H(both[5:], 1.)
    new["enc_d_r"] = descended(m.enc_d_r, loss_enc_d)
    loss_dec_d = H(D(m.dec_d_r, x), 1.) + (H(D(m.dec_d_r, x_hat), 0.) + H(D(m.dec_d_r, x_gen), 0.))/2
    new["dec_d_r"] = descended(m.dec_d_r, loss_dec_d)
    judges = copy.deepcopy(m)
    put(judges.enc_d_r, new["enc_d_r"]); put(judges.dec_d_r, new["dec_d_r"])
    loss_x = H(x_hat, x)
    fool_enc, fool_dec = H(D(judges.enc_d_r, torch.cat([z_gen, z]))[5:], 0.), H(D(judges.dec_d_r, x_hat), 1.) + H(D(judges.dec_d_r, x_gen), 1.)
    new["enc_r"] = descended(m.enc_r, loss_x + GAMMA_ENC*fool_enc)
    new["dec_r"] = descended(m.dec_r, loss_x + GAMMA_DEC*fool_dec)
    for name, values in new.items(): assert same(getattr(after, name), values), name
    for name, value in dict(loss_x_r=loss_x, loss_enc_d_r=loss_enc_d, loss_dec_d_r=loss_dec_d, loss_enc_r=fool_enc, loss_dec_r=fool_dec).items():
        assert torch.isclose(losses[name], value, atol=1e-10), name


def test_algorithm_2(fabric):
    torch.manual_seed(0)
    model = conditional.Conditional(SHAPE, ["a", "b", "c"], 4, 3, width=1/64, noise=0.)
    b, k = batch(), 3
    after, losses = one_step(model, conditional.step, b, fabric)
    m = copy.deepcopy(model)
    torch.manual_seed(1)
    x, y = b["x"], b["y"]
    z_r = m.enc_r(x[:, [0, 2]]).detach()
    z_r_hat, u, z_s = m.enc_rs(x)
    z_r_gen, z_s_gen, y_gen = torch.randn_like(z_r_hat), torch.randn_like(z_s), y[torch.randperm(len(y))]
    x_hat = torch.sigmoid(m.dec_rs(z_r_hat, torch.exp(u)/torch.exp(u).sum(1, keepdim=True), z_s))
    x_gen = torch.sigmoid(m.dec_rs(z_r_gen, torch.eye(k)[y_gen], z_s_gen))
    gen = torch.full_like(y, k)
    both = lambda net: net(torch.cat([z_s_gen, z_s]))
    NLL = lambda net, v, c: -log_softmax_at(net(v), c).mean()
    new = {}
    loss_enc_d = -log_softmax_at(both(m.enc_d_s)[:5], gen).mean() - log_softmax_at(both(m.enc_d_s)[5:], y).mean()
    new["enc_d_s"] = descended(m.enc_d_s, loss_enc_d)
    loss_dec_d = NLL(m.dec_d_rs, x, y) + (NLL(m.dec_d_rs, x_hat, gen) + NLL(m.dec_d_rs, x_gen, gen))/2
    new["dec_d_rs"] = descended(m.dec_d_rs, loss_dec_d)
    judges = copy.deepcopy(m)
    put(judges.enc_d_s, new["enc_d_s"]); put(judges.dec_d_rs, new["dec_d_rs"])
    loss_x, loss_z, loss_y = H(x_hat, x), ((z_r - z_r_hat)**2).mean(), -log_softmax_at(u, y).mean()
    fool_enc = -log_softmax_at(both(judges.enc_d_s)[5:], gen).mean()
    fool_dec = NLL(judges.dec_d_rs, x_hat, y) + NLL(judges.dec_d_rs, x_gen, y_gen)
    new["enc_rs"] = descended(m.enc_rs, loss_x + loss_z + loss_y + GAMMA_ENC*fool_enc)
    new["dec_rs"] = descended(m.dec_rs, loss_x + GAMMA_DEC*fool_dec)
    for name, values in new.items(): assert same(getattr(after, name), values), name
    want = dict(loss_x_rs=loss_x, loss_z_r=loss_z, loss_y=loss_y, loss_enc_d_s=loss_enc_d, loss_dec_d_rs=loss_dec_d, loss_enc_s=fool_enc, loss_dec_rs=fool_dec)
    for name, value in want.items(): assert torch.isclose(losses[name], value, atol=1e-10), name


MODELS = [(lambda: reference.Reference(SHAPE, 4, 1/64), reference.step), (lambda: conditional.Conditional(SHAPE, ["a", "b", "c"], 4, 3, 1/64), conditional.step)]


@pytest.mark.parametrize("make, step", MODELS)
def test_each_part_moves_its_own_network_only(make, step, fabric):
    torch.manual_seed(0)
    model = make()
    names = {n for n, net in model.named_children() if any(p.requires_grad for p in net.parameters())}
    assert moved(model, one_step(model, step, batch(), fabric)[0]) == names
    for name in names: assert moved(model, one_step(model, step, batch(), fabric, only=name)[0]) == {name}


def test_the_image_adversary_never_reaches_the_encoder(fabric):
    "Whatever gamma_dec is, Enc moves alike (section 2.3, first strategy)"
    torch.manual_seed(0)
    for make, step in MODELS:
        model = make()
        moved_to = []
        for gamma in (0., 100.):
            m = copy.deepcopy(model)
            names = [n for n, net in m.named_children() if any(p.requires_grad for p in net.parameters())]
            nets = {n: fabric.setup_module(getattr(m, n)) for n in names}
            opts = {n: fabric.setup_optimizers(torch.optim.SGD(getattr(m, n).parameters(), LR)) for n in names}
            torch.manual_seed(1)
            extra = dict(enc_r=m.enc_r) if "enc_rs" in names else {}
            step(nets, opts, batch(), fabric, gamma_dec=gamma, **extra)
            enc, dec = ("enc_rs", "dec_rs") if extra else ("enc_r", "dec_r")
            moved_to.append((torch.cat([p.flatten() for p in getattr(m, enc).parameters()]), torch.cat([p.flatten() for p in getattr(m, dec).parameters()])))
        (enc_0, dec_0), (enc_1, dec_1) = moved_to
        assert torch.equal(enc_0, enc_1) and not torch.equal(dec_0, dec_1)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_a_step_in_half_precision_is_near_one_in_full(precision):
    torch.set_default_dtype(torch.float32)
    shape, moved = (8, 8, 8), {}
    for kind in ("32-true", precision):
        torch.manual_seed(0)
        phase_1 = reference.Reference(shape, n_latent=4, width=1/32, noise=0.)
        phase_2 = conditional.Conditional.after(phase_1, ["a", "b"], 4)
        batch, losses = dict(x=torch.rand(4, 3, *shape), y=torch.tensor([0, 1, 1, 0])), {}
        for model, step in [(phase_1, reference.step), (phase_2, partial(conditional.step, enc_r=phase_2.enc_r))]:
            fabric, opts = Fabric(accelerator="cpu", precision=kind), reference.optimisers(model)
            nets = {n: fabric.setup_module(getattr(model, n)) for n in opts}
            torch.manual_seed(1)
            losses |= step(nets, {n: fabric.setup_optimizers(o) for n, o in opts.items()}, batch, fabric)
        moved[kind] = losses
    for name, value in moved["32-true"].items(): assert torch.isclose(moved[precision][name].float(), value, rtol=.03, atol=.01), name


def several_steps(model, step, fabric, n=3, **weights):
    "The networks after each of n steps with Adam, and the losses' names"
    model, after, names = copy.deepcopy(model), [], []
    moving = [n for n, net in model.named_children() if any(p.requires_grad for p in net.parameters())]
    nets = {n: fabric.setup_module(getattr(model, n)) for n in moving}
    opts = {n: fabric.setup_optimizers(torch.optim.Adam(getattr(model, n).parameters(), 1e-3)) for n in moving}
    if isinstance(model, conditional.Conditional): step = partial(step, enc_r=model.enc_r)
    torch.manual_seed(1)
    for _ in range(n):
        names.append({*step(nets, opts, batch(), fabric, **weights)})
        after.append({n: torch.cat([p.detach().flatten().clone() for p in getattr(model, n).parameters()]) for n in moving})
    return after, names


@pytest.mark.parametrize("make, step", MODELS)
def test_a_lazy_adversary_rests_between_its_turns(make, step, fabric):
    torch.manual_seed(0)
    model = make()
    judge = "dec_d_rs" if isinstance(model, conditional.Conditional) else "dec_d_r"
    after, names = several_steps(model, step, fabric, 3, gamma_dec=.1, lazy=2)
    first, said = several_steps(model, step, fabric, 1, gamma_dec=.2)  # in its turn it weighs twice as much
    assert all(torch.equal(after[0][n], first[0][n]) for n in first[0])
    rests = {f"loss_{judge}", f"loss_{judge.replace('_d_', '_')}"}
    assert names == [said[0], said[0] - rests, said[0]] and rests < said[0]
    assert torch.equal(after[0][judge], after[1][judge]) and not torch.equal(after[1][judge], after[2][judge])
    assert all(not torch.equal(after[0][n], after[1][n]) for n in after[0] if n != judge)


def test_the_structure_weighs_what_is_asked(fabric):
    torch.manual_seed(0)
    model, b = conditional.Conditional(SHAPE, ["a", "b", "c"], 4, 3, width=1/64, noise=0.), batch()
    after, losses = one_step(model, partial(conditional.step, weight_s=3.), b, fabric, only="dec_rs")
    m = copy.deepcopy(model)
    codes = [c.detach() for c in m.enc_rs(b["x"])]
    x_hat = torch.sigmoid(m.dec_rs(codes[0], torch.softmax(codes[1], 1), codes[2]))
    by_channel = [H(x_hat[:, c], b["x"][:, c]) for c in range(3)]
    assert torch.isclose(losses["loss_x_rs"], sum(by_channel)/3, atol=1e-10)
    plain, _ = one_step(model, conditional.step, b, fabric, only="dec_rs")
    def change(x): return torch.cat([(p - q).flatten() for p, q in zip(x.dec_rs.parameters(), m.dec_rs.parameters())])
    weighted, mean = (torch.autograd.grad(l, list(m.dec_rs.parameters()), retain_graph=True) for l in
                      ((by_channel[0] + 3*by_channel[1] + by_channel[2])/5, sum(by_channel)/3))
    by_hand = torch.cat([(a - b).flatten() for a, b in zip(weighted, mean)])
    assert torch.allclose(change(after) - change(plain), -LR*by_hand, rtol=0, atol=1e-10)


def test_the_codes_weigh_what_is_asked(fabric):
    torch.manual_seed(0)
    model, b = conditional.Conditional(SHAPE, ["a", "b", "c"], 4, 3, width=1/64, noise=0.), batch()
    thrice, plain = (one_step(model, partial(conditional.step, weight_codes=w), b, fabric, only="enc_rs")[0]
                     for w in (3., 1.))
    m = copy.deepcopy(model)
    z_r_hat, y_hat, _ = m.enc_rs(b["x"])
    of_codes = F.mse_loss(z_r_hat, m.enc_r(b["x"][:, [0, 2]])) + F.cross_entropy(y_hat, b["y"])
    by_hand = torch.cat([g.flatten() for g in torch.autograd.grad(of_codes, [*m.enc_rs.parameters()],
                                                                  materialize_grads=True)])
    change = torch.cat([(p - q).flatten() for p, q in zip(thrice.enc_rs.parameters(), plain.enc_rs.parameters())])
    assert torch.allclose(change, -2*LR*by_hand, rtol=0, atol=1e-10)


def test_moments_weigh_what_is_asked(fabric):
    torch.manual_seed(0)
    model, b = conditional.Conditional(SHAPE, ["a", "b", "c"], 4, 3, width=1/64, noise=0., held=True), batch()
    model.moments.of_code.copy_(torch.eye(3)*2)
    plain, held = (one_step(model, partial(conditional.step, gamma_moments=g, moments=m), b, fabric, only="enc_rs")[0]
                   for g, m in ((0., None), (.5, copy.deepcopy(model).moments)))
    m = copy.deepcopy(model)
    z_s, z_r, y = m.enc_rs(b["x"])[2], m.enc_r(b["x"][:, [0, 2]]), b["y"]
    f, z = torch.cat([3**.5*F.one_hot(y, 3), z_r], 1), z_s.detach()
    of_code, with_known = .98*model.moments.of_code + .02*z.T@z/len(z), .02*z.T@f/len(z)
    by_hand = sum(((with_known@f[i])@z_s[i] + z[i]@(of_code - torch.eye(3))@z_s[i]/2)/len(z) for i in range(len(z)))
    of_all = torch.cat([g.flatten() for g in torch.autograd.grad(by_hand, [*m.enc_rs.parameters()],
                                                                 materialize_grads=True)])
    change = torch.cat([(p - q).flatten() for p, q in zip(held.enc_rs.parameters(), plain.enc_rs.parameters())])
    assert change.abs().max() > 0 and torch.allclose(change, -.5*LR*of_all, rtol=0, atol=1e-10)
    with pytest.raises(BadInput, match="held=True"):
        one_step(conditional.Conditional(SHAPE, ["a", "b", "c"], 4, 3, width=1/64), partial(conditional.step, gamma_moments=.5),
                 b, fabric, only="enc_rs")
