"What the plots promise beyond their lesson cells: any input form, both dimensions, small pictures, shown once"
import io

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient
from plotly.offline import get_plotlyjs

from integrated_cell import charts, plot
from integrated_cell.results import BadInput

rng = np.random.default_rng(0)


def cell(shape, channels=3):
    return rng.integers(1, 255, (channels, *shape)).astype(np.uint8)


def picture(fig):
    fig.savefig(page := io.BytesIO(), format="png", bbox_inches="tight")
    return page.getvalue()


@pytest.mark.parametrize("shape", [(6, 10, 14), (10, 14)])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_any_form_of_a_cell_gives_the_same_picture(shape, channels):
    x = cell(shape, channels)
    rgb = plot.overlay(x)
    assert rgb.shape == (10, 14, 3) and rgb.min() >= 0 and rgb.max() <= 1
    assert np.allclose(rgb, plot.overlay(x.astype(np.float32) / 255), atol=1e-6)
    torch = pytest.importorskip("torch")
    assert np.allclose(rgb, plot.overlay(torch.from_numpy(x)), atol=1e-6)


def test_an_empty_channel_stays_black():
    assert plot.overlay(np.zeros((3, 4, 5, 6), np.uint8)).max() == 0
    plot.show_cells([np.zeros((3, 4, 5, 6), np.uint8)], voxel_um=(1, 1, 1))


def test_fixed_limits_make_panels_comparable():
    bright = cell((4, 6, 8), 1)
    dim, limits = bright // 2, bright.max(keepdims=True).ravel() / 255
    assert np.allclose(plot.overlay(bright), plot.overlay(dim), atol=.02)
    assert np.allclose(plot.overlay(dim, limits=limits), plot.overlay(bright, limits=limits) / 2, atol=.01)


@pytest.mark.parametrize("views, size", [(("Z",), (20, 28)), (("Z", "Y", "X"), (20 + 2 + 24, 28 + 2 + 24))])
def test_side_views_keep_micrometres(views, size):
    fig = plot.show_cells([cell((6, 20, 28))], voxel_um=(.8, .2, .2), views=views, crop=False)
    ax = fig.axes[0]
    assert ax.images[0].get_array().shape[:2] == size
    bar = next(p for p in ax.patches if p.get_gid() == "scale bar")
    assert np.isclose(bar.get_width() * .2, float(ax.texts[0].get_text().split()[0]))


def test_cells_of_two_shapes_or_unknown_channels_are_refused():
    for wrong in ([cell((4, 5)), cell((5, 4))], [], [None]):
        with pytest.raises(BadInput): plot.show_cells(wrong)
    with pytest.raises(BadInput): plot.overlay(cell((4, 5), 4))
    with pytest.raises(BadInput): plot.overlay(cell((4, 5)), ["membrane", "golgi", "dna"])
    with pytest.raises(BadInput): charts.curves(pd.DataFrame({"epoch": [0], "loss_y": [1.]}), ["loss_x"])


def test_a_grid_of_many_cells_stays_small():
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in (16, 48, 64)], indexing="ij")
    r = np.sqrt(z**2 + y**2 + x**2)
    smooth = [(255 * np.stack([np.exp(-((r - a) / .1)**2), (r < a) * np.abs(np.sin(9 * x * y + 5 * z)), r < a / 2])).astype(np.uint8) for a in np.linspace(.6, .9, 66)]
    fig = plot.show_cells(smooth, titles=list("abcdef"), row_titles=[f"structure {i}" for i in range(11)], voxel_um=(.5, .3, .3))
    assert len(picture(fig)) < 400_000


def test_figures_of_odd_tables():
    picture(charts.curves(pd.DataFrame({"epoch": [0], "loss_y": [0.]})))
    picture(charts.confusion(np.zeros((2, 2), int), ["a", "b"]))
    picture(charts.latent(rng.normal(size=(20, 2)), rng.integers(0, 11, 20), [f"class {i}" for i in range(11)]))
    picture(charts.intervals(pd.DataFrame({"method": ["a"], "value": [.5], "low": [np.nan], "high": [np.nan]}), "share"))
    assert not plt.get_fignums()


def test_a_notebook_shows_a_figure_once():
    code = "import numpy as np\nfrom integrated_cell import plot\nplot.show_cells([np.ones((3, 4, 5), np.uint8)])"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    outputs = NotebookClient(nb, timeout=120, kernel_name="python3").execute().cells[0].outputs
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 1


def test_the_slider_of_a_page_changes_the_picture(browser, tmp_path):
    x = np.zeros((3, 5, 30, 40), np.uint8)
    for k in range(5): x[1, k, 5 * k:5 * k + 5] = 200
    script = tmp_path / "plotly.min.js"
    script.write_text(get_plotlyjs(), encoding="utf-8")
    html = plot.slices([x, x], (.5, .2, .2), titles=["observed", "predicted"]).data
    (tmp_path / "page.html").write_text(f"<meta charset='utf-8'><script src='{script.name}'></script>{html}", encoding="utf-8")
    asked, lost = browser.open(tmp_path / "page.html")
    assert not lost
    shown = "document.querySelector('.js-plotly-plot').data[0].source"
    before = browser.run(shown)
    browser.run("(()=>{let g=document.querySelector('.js-plotly-plot'), s=g.layout.sliders[0].steps[4]; return Plotly.restyle(g, s.args[0]).then(()=>1)})()")
    assert before.startswith("data:image/png") and browser.run(shown) != before
    browser.picture(tmp_path / "page.png")


def test_a_film_plays_holds_and_goes_to_any_frame(browser, tmp_path):
    frames = np.zeros((6, 5, 3, 4, 30, 40), np.uint8)
    for k in range(6): frames[k, :, 1, :, 5 * k:5 * k + 5, 5:35] = 200; frames[k, :, 0, :, ::29] = 90
    (tmp_path / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
    html = plot.animation(frames, [f"stage {k}" for k in range(6)], (.5, .2, .2), [f"structure {k}" for k in range(5)], ncols=3, seconds=.1).data
    (tmp_path / "page.html").write_text(f"<meta charset='utf-8'><script src='plotly.min.js'></script>{html}", encoding="utf-8")
    asked, lost = browser.open(tmp_path / "page.html")
    assert not lost and all(a.startswith(("file:", "data:", "blob:")) for a in asked)
    graph = "document.querySelector('.js-plotly-plot')"
    shown, label = f"{graph}.data[0].source", "document.querySelector('.slider-label').textContent"
    first = browser.run(shown)
    assert browser.run(label) == "stage 0"
    command = "(()=>{let g=%s, b=g.layout.%s; return Plotly.animate(g, ...b.args).then(()=>1)})()"
    browser.run(command % (graph, "sliders[0].steps[3]"))
    third = browser.run(shown)
    assert third != first and browser.run(label) == "stage 3"
    browser.run(command % (graph, "updatemenus[0].buttons[0]"))
    assert browser.run(label) == "stage 5" and browser.run(shown) not in (first, third)
    browser.picture(tmp_path / "page.png")


def test_a_film_of_large_cells_stays_small_and_its_scale_bar_true():
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in (2, 96, 128)], indexing="ij")
    frames = [[np.stack([np.exp(-((y**2 + x**2 - a) / .1)**2) + 0*z, (np.sin(30 * x * y + k) > .9) + 0*z, (x**2 + y**2 < a / 3) + 0*z]).astype(np.float32) for k in range(12)] for a in np.linspace(.4, .8, 36)]
    html = plot.animation(frames, [str(k) for k in range(36)], (.3, .3, .3), ["name"] * 12).data
    assert len(html) < 4_000_000 and '"dx":0.6' in html.replace(" ", "")
    for labels in ([], ["one"]):
        with pytest.raises(BadInput): plot.animation(frames[:2], labels, (.3, .3, .3))
