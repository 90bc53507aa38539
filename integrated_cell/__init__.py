"""The 3D integrated cell, GANs for biological images and CytoGAN, as one library; the notebooks in nbs/ are its source.

`import integrated_cell as ic` offers the verbs that one needs first; each is loaded when it is first used, so that the
import itself takes no time. Everything else is imported from its module, e.g. `integrated_cell.evaluation.truth`.
"""

from importlib import import_module as _import

__version__ = "0.1.0"
_FIRST = {
    "simulation.stem": "simulate_cells",
    "simulation.yeast": "simulate_yeast",
    "simulation.screen": "simulate_screen",
    "data.cells": "Cells",
    "data.manifest": "fetch",
    "data.stack": "prepare_cell",
    "training.train": "load",
    "integration.conditional": "Conditional",
    "integration.integrate": "integrate",
    "integration.own": "image_rows integrate_images",
    "models": "open_model",
    "synthesis.families": "open_gan draw",
    "evaluation.c2st": "c2st median_mad",
    "profiling.features": "measure",
    "profiling.profiles": "scale_plates profiles whiten nsc_accuracy",
    "plot": "show_cells overlay",
}
_WHERE = {name: module for module, names in _FIRST.items() for name in names.split()}
__all__ = [*_WHERE]


def __getattr__(name):  # PEP 562: asked for the first time
    if name not in _WHERE:
        raise AttributeError(f"integrated_cell has no '{name}'; it offers {', '.join(_WHERE)}, and its modules")
    globals()[name] = value = getattr(_import(f"integrated_cell.{_WHERE[name]}"), name)
    return value


def __dir__(): return sorted(_WHERE)
