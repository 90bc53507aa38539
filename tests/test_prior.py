"The fitted prior: exact both ways, a real gain where there is structure, resumed as if never stopped, kept and opened"
import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.covariance import ledoit_wolf

from integrated_cell.integration.integrate import decode
from integrated_cell.integration.conditional import Conditional
from integrated_cell.integration.prior import Couplings, Flow, Normal, fit_flow, open_prior
from integrated_cell.integration.reference import Reference
from integrated_cell.results import BadInput
from integrated_cell.training.train import save


def shaken(net, sd=.3):
    for p in net.parameters(): torch.nn.init.normal_(p, 0, sd)
    return net.eval()


def curved(n, seed=0):
    "Codes whose rest bends with the shape, by class: no Gaussian holds them"
    rng = torch.Generator().manual_seed(seed)
    z_r, y = torch.randn(n, 3, generator=rng), torch.arange(n)%3
    turn = z_r[:, :1] + 2*y[:, None]
    z_s = torch.cat([torch.sin(2*turn), torch.cos(2*turn), turn**2/4, torch.zeros(n, 1)], 1) + .15*torch.randn(n, 4, generator=rng)
    return z_r, z_s, y, np.arange(n)%10 == 0


@pytest.mark.parametrize("n, n_context", [(1, 2), (2, 0), (3, 2), (32, 43), (128, 150)])
def test_inverse_and_determinant_at_any_width(n, n_context):
    torch.manual_seed(n)
    flow, z, c = shaken(Couplings(n, n_context, n_layers=4, width=16), .1), torch.randn(20, n), torch.randn(20, n_context)
    u, log_det = flow.noise(z, c)
    assert torch.allclose(flow.inverse(u, c), z, atol=1e-3)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.noise(v[None], c[:1])[0][0], z[0])
    assert torch.allclose(torch.linalg.slogdet(jacobian)[1], log_det[0], atol=1e-3)


def test_density_agrees_with_scipy_where_the_flow_is_linear():
    z_r, z_s, y, _ = curved(400)
    flow = Flow(3, 4, 3).begin(z_r, z_s, y).eval()
    log_r, _ = flow.log_density(z_r, z_s, y)
    assert np.allclose(log_r, stats.multivariate_normal(z_r.mean(0), ledoit_wolf(z_r)[0]).logpdf(z_r), atol=1e-3)


def test_flow_beats_gaussians_on_codes_it_has_not_seen_and_its_noise_is_normal(tmp_path):
    z_r, z_s, y, held = curved(1500)
    torch.manual_seed(0)
    flow = Flow(3, 4, 3, n_layers=4, width=32)
    fit_flow(flow, z_r, z_s, y, held, 10, tmp_path, lr=5e-3, anneal=.5, show=False)
    a, b, c, _ = curved(600, seed=1)
    ours = flow.log_density(a, b, c)[1].mean().item()
    gauss = [stats.multivariate_normal(of.mean(0), np.cov(of.T)).logpdf(b[c == k]).mean() for k in range(3) for of in [z_s[y == k].numpy()]]
    assert ours > np.mean(gauss) + 1 and ours > stats.norm.logpdf(b).sum(1).mean()
    u = flow.u_s(b, a, c)
    assert abs(u.mean()) < .1 and abs(u.std() - 1) < .15


def test_a_fit_goes_on_where_it_was(tmp_path):
    z_r, z_s, y, held = curved(300)
    ends = []
    for name, epochs in (("once", [4]), ("twice", [2, 4])):
        for n in epochs:
            torch.manual_seed(0)
            flow = Flow(3, 4, 3, n_layers=2, width=8, dropout=.2)
            history = fit_flow(flow, z_r, z_s, y, held, n, tmp_path/name, show=False)
        ends.append((history, flow.state_dict()))
    assert np.allclose(ends[0][0].filter(like="loss"), ends[1][0].filter(like="loss"))
    assert all(torch.equal(v, ends[1][1][k]) for k, v in ends[0][1].items())


def test_kept_and_opened(tmp_path):
    z_r, z_s, y, held = curved(200)
    flow = Flow(3, 4, 3, n_layers=2, width=8, dropout=.5)
    fit_flow(flow, z_r, z_s, y, held, 1, tmp_path/"prior", show=False)
    again = open_prior("flow", tmp_path)
    assert not again.training and torch.equal(again.z_s(z_s, z_r, y), flow.z_s(z_s, z_r, y))
    assert torch.equal(again.z_s(z_s, z_r, y), again.z_s(z_s, z_r, y))  # no dropout left


def test_bad_input_is_one_sentence(tmp_path):
    z_r, z_s, y, held = curved(30)
    with pytest.raises(BadInput, match="use normal or flow"): open_prior("gaussian", tmp_path)
    with pytest.raises(BadInput, match="run the chapter 'prior'"): open_prior("flow", tmp_path)
    save(Reference((8, 8), 4, 1/32), tmp_path/"prior")
    with pytest.raises(BadInput, match="not Flow"): open_prior("flow", tmp_path)
    with pytest.raises(BadInput, match="hold out"): fit_flow(Flow(3, 4, 3), z_r, z_s, y, np.zeros(30, bool), 1, tmp_path, show=False)
    with pytest.raises(BadInput, match="hold out"): fit_flow(Flow(3, 4, 3), z_r, z_s, y, np.ones(30, bool), 1, tmp_path, show=False)
    with pytest.raises(BadInput, match="not finite"): fit_flow(Flow(3, 4, 3), z_r*np.nan, z_s, y, held, 1, tmp_path, show=False)


@pytest.mark.parametrize("shape", [(8, 12, 16), (16, 16)])
def test_decode_takes_rows_as_they_are(shape):
    torch.manual_seed(0)
    model, flow = Conditional(shape, ["a", "b", "c"], 3, 4, width=1/32).eval(), shaken(Flow(3, 4, 3, n_layers=2, width=8))
    z_r, y, u_s = torch.randn(7, 3), torch.tensor([2, 0, 1, 1, 2, 0, 0]), torch.randn(7, 4)
    for prior in (Normal(), flow):
        x = decode(model, prior, z_r, y, u_s, batch_size=3)
        assert x.shape == (7, *shape) and x.dtype == torch.float32 and not x.requires_grad and 0 <= x.min() and x.max() <= 1
        at = torch.tensor([5, 1, 3])
        assert torch.allclose(decode(model, prior, z_r[at], y[at], u_s[at].double()), x[at], atol=1e-5)
        assert decode(model, prior, z_r.numpy(), y.numpy(), u_s.numpy(), channel=slice(None)).shape == (7, 3, *shape)
