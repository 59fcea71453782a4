import pytest

import mask_rcnn

SMALL = dict(
    n_fg_class=3, min_size=64, max_size=96, rpn_pre_nms=200, rpn_post_nms=16, score_threshold=0.01, max_detections=5
)


@pytest.fixture(scope='module')
def small_model():
    """A network with random weights that takes small images and finds something on each."""
    import numpy as np

    np.random.seed(0)
    model = mask_rcnn.build('resnet50', class_names=('square', 'circle', 'triangle'), **SMALL)
    for path, param in model.namedparams():
        if path.endswith('conv3/norm/scale'):  # else 16 residual sums grow until every score is 1
            param.array[...] = 0.2
    return model
