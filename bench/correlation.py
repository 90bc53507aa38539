"""At what share of the machine's matrix rate does the correlation of all pairs of images stream, and in how much memory?

    python bench/correlation.py --n 200,1000 --voxels 98304 --memory_mib 128

The matrix rate is that of one large float32 product in PyTorch (TF32 off), measured in turn with the rest; so are numpy.corrcoef, and
the library's on an array, a memory map and a stream that is laid down in a file; on a GPU the array and the stream lie there. The
library works in float64 and multiplies each pair once, so beside the share of the float32 rate (for the 2 n² voxels operations of all
pairs) stands the share of the float64 rate of the operations that are really done, n (n + 1) voxels.
"""
import argparse
import statistics
import tempfile
import time

import numpy as np
import torch
from record import Peak, record

from integrated_cell.evaluation.correlation import streamed_correlation

said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
said.add_argument("--n", default="200,1000", help="images, several sizes")
said.add_argument("--voxels", type=int, default=32*48*64)
said.add_argument("--memory_mib", type=int, default=128)
said.add_argument("--repeats", type=int, default=3)
a = said.parse_args()
on_gpu, memory = torch.cuda.is_available(), a.memory_mib*2**20
torch.manual_seed(0)


def timed(way):
    with Peak() as peak:
        start = time.perf_counter()
        value = way()
        if on_gpu: torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return seconds, peak.host_gib + peak.device_gib, value


square = 8192 if on_gpu else 2048
of_type = {t: torch.ones(square, square, dtype=t, device="cuda" if on_gpu else "cpu") for t in (torch.float32, torch.float64)}
rows, differs = [], 0.
for n in [int(k) for k in a.n.split(",")]:
    with tempfile.TemporaryFile() as file:
        mapped = np.memmap(file, np.float32, "w+", shape=(n, a.voxels))
        for k in range(0, n, 50): mapped[k:k + 50] = torch.randn(len(mapped[k:k + 50]), a.voxels).numpy()
        x = torch.from_numpy(np.array(mapped)).to("cuda" if on_gpu else "cpu")
        ways = {"matrix rate": lambda: of_type[torch.float32] @ of_type[torch.float32],
                "float64 rate": lambda: of_type[torch.float64] @ of_type[torch.float64],
                "numpy.corrcoef": lambda: np.corrcoef(mapped),
                "library, array": lambda: streamed_correlation(x, memory),
                "library, memory map": lambda: streamed_correlation(mapped, memory),
                "library, stream through a file": lambda: streamed_correlation(x.split(50), memory)}
        found = {name: [] for name in ways}
        for name in ("matrix rate", "float64 rate", "library, array"): ways[name]()  # warm
        for _ in range(a.repeats):
            for name, way in ways.items():
                if name != "numpy.corrcoef" or not found[name]: found[name].append(timed(way))
        seconds = {name: statistics.median(r[0] for r in runs) for name, runs in found.items()}
        rates = {name: 2*square**3/seconds[name]/1e9 for name in ("matrix rate", "float64 rate")}
        for name in [*ways][2:]:
            differs = max(differs, float(abs(found[name][0][2] - found["numpy.corrcoef"][0][2]).max()))
            gflop = 2e-9*n*n*a.voxels/seconds[name]
            rows.append({"images": n, "side": name, "seconds": seconds[name], "gflop_per_s": gflop, "percent_of_matrix_rate": 100*gflop/rates["matrix rate"],
                         "percent_of_float64_rate_done": 50*gflop*(n + 1)/n/rates["float64 rate"], "working_gib": statistics.median(r[1] for r in found[name])})
        del mapped, x
record("Does the correlation of all pairs stream at the machine's matrix rate?", rows, voxels=a.voxels, memory_mib=a.memory_mib,
       matrix_gflop_per_s=rates["matrix rate"], float64_gflop_per_s=rates["float64 rate"], largest_difference_from_numpy=differs)
