"""The 3D integrated cell, GANs for biological images and CytoGAN, as one library; the notebooks in nbs/ are its source."""

__version__ = "0.1.0"
