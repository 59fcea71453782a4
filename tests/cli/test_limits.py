"""``--max-detections`` of demo and evaluate, and the metrics that belong to it."""

import json

import cv2
import pytest

import mask_rcnn
from mask_rcnn.cli import demo, evaluate, main
from mask_rcnn.datasets import ShapesDataset
from mask_rcnn.evaluation import evaluate_model
from mask_rcnn.weights import WeightFileError


@pytest.mark.parametrize(('option', 'config_limit', 'metric_limit'), [(None, 100, None), ('7', 7, 7), ('0', 0, 1000)])
def test_the_limit_reaches_the_model_and_the_metrics(monkeypatch, tmp_path, option, config_limit, metric_limit):
    config = mask_rcnn.PRESETS['resnet50']
    calls = {}

    class Model:
        class_names, category_ids = ('a',) * 80, tuple(range(80))

    def load(path, *, gpu, bn2affine, dialect, **changes):
        Model.config = config.replace(**changes)
        return Model()

    def evaluate_model(model, dataset, *, max_detections, **options):
        calls['metrics'] = max_detections
        raise WeightFileError('m.npz', 'stop here')

    class Data:
        class_names = ('a',)

        def __len__(self):
            return 1

    monkeypatch.setattr(mask_rcnn, 'load', load)
    monkeypatch.setattr(evaluate, 'open_evaluation_data', lambda data, model: (Data(), 'data'))
    monkeypatch.setattr(evaluate, 'evaluate_model', evaluate_model)
    options = [] if option is None else ['--max-detections', option]
    arguments = ['--dataset', 'shapes', '--modelfile', 'm.npz', '--gpu', '-1', '--out', str(tmp_path / 'out')]
    assert evaluate.main([*arguments, *options]) == 1
    assert (Model.config.max_detections, calls['metrics']) == (config_limit, metric_limit)


@pytest.mark.parametrize(('limit', 'metric'), [(0, 'AR100'), (7, 'AR100'), (100, 'AR100'), (300, 'AR300')])
def test_the_metrics_have_at_least_the_limit_of_coco(limit, metric):
    """A model of crowds is evaluated with all its detections."""
    model = mask_rcnn.build(
        'mobilenet_v1_fpn',
        width=0.25,
        fpn_channels=8,
        head_channels=8,
        mask_channels=8,
        n_fg_class=3,
        class_names=ShapesDataset.class_names,
        min_size=64,
        max_size=64,
        max_detections=limit,
    )
    metrics = evaluate_model(model, ShapesDataset(1, size=64), progress=False)
    assert f'segm/{metric}' in metrics.summary()


def test_the_demo_limits_the_results(root, tmp_path, capsys):
    """The detections are the first ones of a run without the option."""
    pixels = ShapesDataset(1, size=128)[0].image
    cv2.imwrite(str(tmp_path / '1.png'), pixels.transpose(1, 2, 0)[:, :, ::-1])
    arguments = ['demo', '--image', str(tmp_path / '1.png'), '--output', str(tmp_path / 'out.png'), '--gpu', '-1']
    arguments += ['--modelfile', str(root / 'modelfiles' / 'shapes_mobilenet_v1_fpn.npz')]
    results = {}
    for limit in ('100', '1', '0'):
        file = tmp_path / f'{limit}.json'
        assert main([*arguments, '--json', str(file), '--max-detections', limit]) == 0
        results[limit] = json.loads(file.read_text())
    assert len(results['1']) == 1 < len(results['100']) <= len(results['0'])
    assert results['1'] == results['100'][:1]


@pytest.mark.parametrize('text', ['-1', 'nan', '1.5', 'all', str(2**31)])
def test_other_limits_are_refused(text, capsys):
    for command in (demo, evaluate):
        with pytest.raises(SystemExit):
            command.main(['--image', 'x.jpg', '--modelfile', 'm', '--max-detections', text])
        assert 'is not an integer from 0 to 2147483647' in capsys.readouterr().err
