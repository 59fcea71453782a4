"""The model of the repository, for small images."""

from pathlib import Path

from mask_rcnn.models import load

MODEL_FILE = Path(__file__).resolve().parents[2] / 'modelfiles' / 'shapes_mobilenet_v1_fpn.npz'


def load_model(**changes):
    """Load the bundled model with a small network input, which is fast.

    Args:
        changes: Further arguments of :func:`mask_rcnn.load`.
    """
    return load(MODEL_FILE, bn2affine=True, **{'min_size': 96, 'max_size': 160, **changes})
