"""Is the noise of many images found faster in one batch or image by image, by our L-BFGS and by PyTorch's?

    python bench/reconstruct.py
    python bench/reconstruct.py --results results/truth --model "star wgan-gp" --protein Mkh1

One search an image from the same starts. `times_as_fast` is image by image over the row's own time, both ours: processor time on a CPU,
which other programs do not stretch, wall time on a GPU. Beside the time stands the error that was reached.
"""
import argparse
import time

import numpy as np
import torch
from record import record

from integrated_cell.data.cells import Cells
from integrated_cell.synthesis.families import open_gan
from integrated_cell.synthesis.reconstruct import frozen, lbfgs, value_and_grad
from integrated_cell.synthesis.towers import Towers

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--n", type=int, default=16, help="images")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--results", default="", help="a run with trained models; without it a random generator and noisy images of its own")
parser.add_argument("--model", default="star wgan-gp")
parser.add_argument("--protein", default="Mkh1")
args = parser.parse_args()
device, rng = "cuda" if torch.cuda.is_available() else "cpu", np.random.default_rng(0)
torch.manual_seed(0)
if args.results:
    gen, cells = open_gan(args.results, args.model).pair(args.protein), Cells.open(f"{args.results}/yeast/cells")
    rows = [i for i in cells.rows("test") if cells.table.structure[i] == args.protein][:args.n]
    x = torch.from_numpy(np.stack([cells[i] for i in rows])).float()/255
else:
    gen = Towers((48, 80), n_filters=8)
    for p in (gen.red.ups[-1].weight, gen.greens[0].ups[-1].weight): p.data *= 20  # some contrast
    for _ in range(10): gen(torch.randn(32, 50), torch.randn(32, 50))  # batch norms see some noise
    with frozen(gen): x = (gen(torch.randn(args.n, 50), torch.randn(args.n, 50)).detach() + .02*torch.randn(args.n, 2, 48, 80)).clamp(0, 1)
x, d, count = x.to(device), gen.n_latent_r, {}
z = torch.as_tensor(rng.standard_normal((len(x), d + gen.n_latent_s), np.float32), device=device)


def loss(z, rows): return (gen(z[:, :d], z[:, d:]) - x[rows]).square().flatten(1).mean(1)


def batched(): return (at := lbfgs(loss, z, args.steps)).f, at.evaluations.sum()


def one_by_one():
    each = [lbfgs(lambda a, rows: loss(a, rows + i), z[i:i + 1], args.steps) for i in range(len(x))]
    return torch.cat([at.f for at in each]), sum(at.evaluations.sum() for at in each)


def pytorch(rows_of):
    f, evaluations = torch.empty(len(x), device=device), 0
    for rows in rows_of:
        a = z[rows].clone().requires_grad_()
        opt = torch.optim.LBFGS([a], max_iter=args.steps, max_eval=10*args.steps, history_size=10, tolerance_grad=1e-9, tolerance_change=1e-9, line_search_fn="strong_wolfe")

        def closure():
            value = loss(a, rows).sum()*x[0].numel()  # its tolerances are absolute, so it minimises the sum of squares
            a.grad, = torch.autograd.grad(value, a)
            return value
        opt.step(closure)
        evaluations += opt.state[a]["func_evals"]*len(rows)
        f[rows] = loss(a, rows).detach()
    return f, evaluations


every, table = torch.arange(len(x), device=device), []
methods = {"ours, batched": batched, "ours, image by image": one_by_one, "torch.optim.LBFGS, image by image": lambda: pytorch(every.split(1)), "torch.optim.LBFGS, one for all": lambda: pytorch([every])}
with frozen(gen.to(device)):
    value_and_grad(loss, z, every)
    for name, method in methods.items():
        start, cpu = time.perf_counter(), time.process_time()
        f, evaluations = method()
        error = f.sqrt().cpu().numpy()
        table.append({"side": name, "seconds": time.perf_counter() - start,
                      "cpu_seconds": time.process_time() - cpu, "median_rmse": float(np.median(error)),
                      "largest_rmse": float(error.max()), "evaluations_an_image": float(evaluations)/len(x)})
clock = "cpu_seconds" if device == "cpu" else "seconds"
alone = next(row for row in table if row["side"] == "ours, image by image")[clock]
for row in table: row["times_as_fast"] = alone/row[clock]
record("Is the noise of many images found faster in one batch or image by image?", table, n=len(x), steps=args.steps, shape=list(x.shape[1:]), noise=z.shape[1])
