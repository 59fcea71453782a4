"""TensorBoard: the contents of the event files, and the run that writes them, which trains as any other."""

import errno
import json
import os
import struct
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import mask_rcnn  # noqa: F401  (makes Chainer importable, so it comes first)

# isort: split
import chainer

from mask_rcnn.cli import train
from mask_rcnn.cli.dataset_options import N_GENERATED
from mask_rcnn.datasets import ShapesDataset
from mask_rcnn.inference import Detections
from mask_rcnn.inference.resize import resize_detections
from mask_rcnn.training import plots
from mask_rcnn.training.extensions import IntervalTrigger, Tolerant, TrainingLog
from mask_rcnn.training.freezing import FrozenParameter
from mask_rcnn.training.optimizer import make_optimizer
from mask_rcnn.training.signals import SignalHandler
from mask_rcnn.training.snapshot import read_snapshot
from mask_rcnn.training.tensorboard import TensorBoard, markdown_table
from mask_rcnn.training.tensorboard_examples import ExampleDetections, choose_examples
from mask_rcnn.training.tensorboard_histograms import WeightHistograms
from tests.support.small_train import NETWORK, RUN
from tests.support.tiny_training import TinyTrainChain, arrays, make_trainer


class RecordingWriter:
    def __init__(self, folder, purge_step):
        self.folder, self.purge_step = folder, purge_step
        self.scalars, self.images, self.texts, self.histograms = [], [], [], []
        self.closed = False

    def add_scalar(self, name, value, step):
        self.scalars.append((name, step))

    def add_image(self, name, image, step, dataformats):
        self.images.append((name, image, step, dataformats))

    def add_text(self, name, text, step):
        self.texts.append((name, text, step))

    def add_histogram_raw(self, name, global_step, **histogram):
        self.histograms.append((name, global_step, SimpleNamespace(**histogram)))

    def close(self):
        self.closed = True


class RecordingBoard:
    """A stand-in for the extension ``TensorBoard``; records the arrays and the images."""

    def __init__(self):
        self.arrays, self.images = {}, []

    def add_histogram(self, name, array, step):
        self.arrays[name, step] = np.array(array)

    def add_image(self, name, image, step):
        self.images.append((name, image, step))


def log_of(trainer, *, every=2):
    log = TrainingLog(trigger=IntervalTrigger(every), plot_trigger=IntervalTrigger(0), write=False, warn=pytest.fail)
    trainer.extend(log, trigger=(1, 'iteration'))
    return log


def read_events(folder):
    """Return tag -> step -> value of all event files of a folder: records of length, checksum, event, checksum."""
    event_pb2 = pytest.importorskip('tensorboardX.proto.event_pb2')
    values = {}
    for path in sorted(folder.iterdir()):
        data, start = path.read_bytes(), 0
        while start < len(data):
            (length,) = struct.unpack_from('<Q', data, start)
            event = event_pb2.Event.FromString(data[start + 12 : start + 12 + length])
            start += length + 16
            for value in event.summary.value:
                values.setdefault(value.tag, {})[event.step] = value
    return values


# The extension


def test_scalars_and_configuration(tmp_path):
    writers = []
    trainer = make_trainer(tmp_path, stop=(4, 'iteration'))
    board = TensorBoard(
        log_of(trainer),
        lambda *args, **kwargs: writers.append(RecordingWriter(*args, **kwargs)) or writers[-1],
        configuration={'network': {'extractor': 'resnet50'}},
    )
    trainer.extend(board)
    trainer.run()
    (writer,) = writers
    assert writer.folder == str(tmp_path / 'tensorboard') and writer.purge_step == 1 and writer.closed
    assert {('main/loss', 2), ('main/loss', 4), ('grad_norm', 4)} <= set(writer.scalars)
    table = '| name | value |\n| --- | --- |\n| extractor | resnet50 |'
    assert writer.texts == [('configuration/network', table, 0)]


def test_texts_are_neither_markdown_nor_html():
    table = markdown_table({'a_b': 'x|y', 'c': '<i>`*1*`\n', 'd': (1.5, 'ä')})
    assert table.splitlines()[2:] == [
        '| a&#95;b | x&#124;y |',
        '| c | &#60;i&#62;&#96;&#42;1&#42;&#96;&#92;n |',
        "| d | (1.5, 'ä') |",
    ]


def test_event_files_contain_scalars_texts_images_and_histograms(tmp_path):
    pytest.importorskip('tensorboardX')
    trainer = make_trainer(tmp_path, stop=(2, 'iteration'))
    board = TensorBoard(log_of(trainer), configuration={'network': {'norm': 'bn'}})
    trainer.extend(board)
    image = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    values = np.array([0, 1, 1, np.nan, 64, np.inf, -np.inf], np.float16)

    def write(trainer):
        board.add_image('picture', image, 2)
        board.add_histogram('values', values, 2)
        board.add_histogram('no values', np.array([np.nan, np.inf]), 2)
        board.add_histogram('nothing', np.array([]), 2)

    trainer.extend(write, name='writer', trigger=(2, 'iteration'))
    trainer.run()
    events = read_events(tmp_path / 'tensorboard')
    assert events['main/loss'][2].simple_value == pytest.approx(trainer.get_extension('log').log[0]['main/loss'])
    (text,) = events['configuration/network/text_summary'][0].tensor.string_val
    assert text.decode() == '| name | value |\n| --- | --- |\n| norm | bn |'
    data = np.frombuffer(events['picture'][2].image.encoded_image_string, np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1], image)
    histogram = events['values'][2].histo
    assert (histogram.min, histogram.max, histogram.num, histogram.sum, histogram.sum_squares) == (0, 64, 4, 66, 4098)
    # 64 bins of width 1: the value 1 is in the second one, and 64 in the last one.
    assert list(histogram.bucket_limit) == list(range(1, 65))
    assert list(histogram.bucket) == [1, 2, *[0] * 61, 1]
    assert not {'no values', 'nothing'} & set(events)


@pytest.mark.filterwarnings('error::pytest.PytestUnhandledThreadExceptionWarning')
@pytest.mark.parametrize('n_free', [0, 5])
def test_a_full_disk_is_a_warning(tmp_path, monkeypatch, n_free):
    """The writing thread would end with a traceback, and the run would then wait for it."""
    events_writer = pytest.importorskip('tensorboardX.event_file_writer').EventsWriter
    write_event, written = events_writer.write_event, []

    def full(self, event):
        written.append(event)
        if len(written) > n_free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_event(self, event)

    monkeypatch.setattr(events_writer, 'write_event', full)
    trainer, warnings = make_trainer(tmp_path, stop=(40, 'iteration')), []
    board = TensorBoard(log_of(trainer))
    trainer.extend(Tolerant(board, warnings.append, SignalHandler()))
    histograms = WeightHistograms(board, trainer.updater.get_optimizer('main').target, lambda n: n % 5 == 0)
    trainer.extend(Tolerant(histograms, warnings.append, SignalHandler()), trigger=(5, 'iteration'))
    trainer.run()
    assert warnings == ['tensorboard: No space left on device']


# Histograms


def run_with_histograms(tmp_path, *, clip=None, is_due=lambda n: n == 1, board=None, **updater):
    """Train two iterations; return the chain, its first weights and the recorded arrays."""
    board = board or RecordingBoard()
    chain = TinyTrainChain()
    before = arrays(chain.model)
    trainer = make_trainer(
        tmp_path, chain=chain, optimizer=make_optimizer(chain, clip=clip), stop=(1, 'iteration'), **updater
    )
    warnings = []
    histograms = Tolerant(WeightHistograms(board, chain.model, is_due), warnings.append, SignalHandler())
    trainer.extend(histograms, trigger=lambda t: is_due(t.updater.iteration))
    trainer.run()
    return chain, before, getattr(board, 'arrays', None), warnings


@pytest.mark.parametrize(
    'settings', [{}, {'loss_scale': 128.0}, {'clip': 1e-3}, {'subdivisions': 2}], ids=['', 'scale', 'clip', 'parts']
)
def test_gradients_are_those_before_clipping_decay_and_scaling(tmp_path, settings):
    """The first update without clipping is -0.1 * (g + 1e-4 * W) for weights, and -0.1 * 2 * g for biases."""
    chain, before, found, warnings = run_with_histograms(tmp_path, **settings)
    expected, *_ = run_with_histograms(tmp_path / 'plain')
    after = arrays(expected.model)
    assert warnings == []
    for path, weight in before.items():
        step = (weight - after[path]).astype(np.float64) / 0.1
        gradient = step - 1e-4 * weight if path.endswith('W') else step / 2
        np.testing.assert_allclose(found[f'gradients_{path[1:]}', 1], gradient, rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(found[f'weights_{path[1:]}', 0], weight)
        np.testing.assert_array_equal(found[f'weights_{path[1:]}', 1], arrays(chain.model)[path])
    assert len(found) == 3 * len(before)


def test_gradients_are_copied_only_when_they_are_due(tmp_path, monkeypatch):
    copied = []
    monkeypatch.setattr(
        'mask_rcnn.training.tensorboard_histograms.copy_gradients', lambda *args: copied.append(args) or {}
    )
    _, _, found, _ = run_with_histograms(tmp_path, is_due=lambda n: n == 3)
    assert copied == [] and {step for _, step in found} == {0}


def test_an_error_is_a_warning_and_changes_no_update(tmp_path, monkeypatch):
    expected, *_ = run_with_histograms(tmp_path / 'plain')

    def fail(*args):
        raise MemoryError

    monkeypatch.setattr('mask_rcnn.training.tensorboard_histograms.copy_gradients', fail)
    chain, _, found, warnings = run_with_histograms(tmp_path)
    assert len(warnings) == 1 and warnings[0].startswith('histograms: not enough memory')
    assert ('weights_out/W', 1) in found
    for path, array in arrays(expected.model).items():
        np.testing.assert_array_equal(arrays(chain.model)[path], array)


def test_frozen_weights_are_written_once(tmp_path):
    chain, board = TinyTrainChain(), RecordingBoard()
    trainer = make_trainer(tmp_path, chain=chain, stop=(2, 'iteration'))
    chain.model.hidden.W.__class__ = FrozenParameter
    trainer.extend(WeightHistograms(board, chain.model, lambda n: True), trigger=(1, 'iteration'))
    trainer.run()
    assert [step for name, step in board.arrays if name == 'weights_hidden/W'] == [0]
    assert [step for name, step in board.arrays if name == 'weights_out/W'] == [0, 1, 2]
    assert not any(name == 'gradients_hidden/W' for name, _ in board.arrays)


# Examples


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize(('n', 'indices'), [(100, [0, 33, 66, 99]), (4, [0, 1, 2, 3]), (2, [0, 1]), (1, [0]), (0, [])])
def test_examples_are_evenly_spaced(n, indices):
    assert choose_examples(n) == indices


class PerfectModel:
    """Detects one object of the whole image, with a score of 0.9, and one with a score of 0.4."""

    def detect(self, images):
        assert chainer.config.weight_cache is not None  # otherwise a GPU keeps derived weights and graphs
        (image,) = images
        size = image.shape[1:]
        boxes = np.array([(0, 0, size[0] - 1, size[1] - 1), (0, 0, 5, 5)], np.float32)
        return [Detections(size=size, boxes=boxes, labels=np.zeros(2, np.int32), scores=np.float32([0.9, 0.4]))]


def test_examples_show_annotations_and_detections_side_by_side(tmp_path, monkeypatch):
    sheets = []

    def compose(tiles, *, columns, side):
        sheets.append((tiles, columns, side))
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr('mask_rcnn.visualization.contact_sheet.compose_sheet', compose)
    dataset, board = ShapesDataset(9, size=64, seed=1), RecordingBoard()
    trainer = make_trainer(tmp_path, stop=(4, 'iteration'))
    trainer.extend(ExampleDetections(board, PerfectModel(), dataset), trigger=IntervalTrigger(2))
    trainer.run()
    names = [name for name, _, _ in board.images]
    assert names[:4] == names[4:] and names[1].startswith('examples/2_')  # the same ones each time
    assert [step for _, _, step in board.images] == [2] * 4 + [4] * 4
    for number, (tiles, columns, side) in enumerate(sheets):
        index = choose_examples(9)[number % 4]
        n_objects = len(dataset[index].annotations)
        assert (tiles[0].title, tiles[0].details) == ('annotations', f'{n_objects} object{"s" * (n_objects != 1)}')
        assert (tiles[1].title, tiles[1].details) == ('detections', '1 object, score > 0.5')
        assert tiles[0].picture.shape == tiles[1].picture.shape == (128, 128, 3) and (columns, side) == (2, 180)
        original = cv2.resize(dataset[index].image.transpose(1, 2, 0), (128, 128), interpolation=cv2.INTER_CUBIC)
        difference = np.abs(tiles[1].picture - original).max(axis=2)
        assert np.median(difference[8:-8, 8:-8]) < 5  # only a box at the border and a label are drawn
        assert (difference[:2] > 30).mean() > 0.5


def test_detections_of_a_resized_image():
    """Both corners are pixels of the box in Detectron's dialect: 2 rows from row 1 become 4 rows from row 2."""
    detections = Detections(
        boxes=np.array([(1, 2, 2, 5)], np.float32),
        labels=np.array([1], np.int32),
        scores=np.array([0.5], np.float32),
        size=(8, 10),
        mask_probs=np.ones((1, 28, 28), np.float32),
        keypoints=np.array([[(1, 2, 3, 4)]], np.float32),
        class_names=('a', 'b'),
    )
    resized = resize_detections(detections, (16, 30))
    assert resized.boxes.tolist() == [[2, 6, 5, 17]] and resized.keypoints.tolist() == [[[2, 6, 3, 4]]]
    assert resized.size == (16, 30) and resized.names == ['b'] and resized.scores.tolist() == [0.5]
    expected = np.zeros((1, 16, 30), bool)
    expected[0, 2:6, 6:18] = True
    assert iou(resized.masks, expected) > 0.7  # Detectron extends masks by a fraction of a mask pixel
    assert len(resize_detections(detections[np.zeros(1, bool)], (16, 30))) == 0


# Whole runs


@pytest.mark.slow
def test_a_run_with_tensorboard_trains_as_one_without(tmp_path, monkeypatch):
    """Losses, metrics and weights are equal bit for bit."""
    pytest.importorskip('tensorboardX')
    monkeypatch.setattr(plots, 'plot_losses', lambda path, log: None)
    monkeypatch.setattr(plots, 'plot_ap', lambda path, log: None)
    monkeypatch.setitem(N_GENERATED['shapes'], 'val', 5)
    options = [*RUN, *NETWORK, '--iteration', '4', '--validation', '2', '--lr', '0.01', '--seed', '3']
    assert train.main([*options, '--out', str(tmp_path / 'with'), '--tensorboard']) == 0
    assert train.main([*options, '--out', str(tmp_path / 'without')]) == 0
    logs = [json.loads((tmp_path / name / 'log').read_text()) for name in ('with', 'without')]
    for entry in logs[0] + logs[1]:
        del entry['elapsed_time']
    assert logs[0] == logs[1] and len(logs[0]) == 4
    found, expected = (read_snapshot(tmp_path / name / 'snapshot_iter_4.npz').arrays for name in ('with', 'without'))
    names = [name for name in expected if name.startswith('updater/')]
    assert names and [name for name in names if found[name].tobytes() != expected[name].tobytes()] == []

    events = read_events(tmp_path / 'with' / 'tensorboard')
    pictures = sorted(tag for tag in events if tag.startswith('examples/'))
    assert [tag[:11] for tag in pictures] == [f'examples/{n}_' for n in (1, 2, 3, 4)]
    assert all(set(events[tag]) == {2, 4} for tag in pictures)
    assert set(events['weights_rpn/conv/W']) == {0, 2, 4} and set(events['gradients_rpn/conv/W']) == {2, 4}
    weight = expected['updater/model:main/model/rpn/conv/W'].astype(np.float64)
    histogram = events['weights_rpn/conv/W'][4].histo
    assert list(histogram.bucket) == np.histogram(weight, 64)[0].tolist()
    assert histogram.sum_squares == pytest.approx((weight**2).sum())
    tables = {tag: values[0].tensor.string_val[0].decode() for tag, values in events.items() if 'configur' in tag}
    assert [tag.split('/')[1] for tag in tables] == ['command_line', 'training', 'sampling', 'network', 'dialect']
    assert '\n| seed | 3 |\n' in tables['configuration/command_line/text_summary']
    assert '\n| augmentation.flip | True |\n' in tables['configuration/training/text_summary']
    assert '\n| roi&#95;batch | 16 |' in tables['configuration/sampling/text_summary']
    assert '\n| fpn&#95;channels | 16 |\n' in tables['configuration/network/text_summary']
    assert '\n| input.channel&#95;order | RGB |\n' in tables['configuration/dialect/text_summary']
