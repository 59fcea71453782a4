"""Helpers for the tests of the scripts that train and evaluate models."""

from pathlib import Path

import mask_rcnn
from mask_rcnn.cli import evaluate, train
from mask_rcnn.cli.command import ArgumentParser


def parse_train_arguments(words):
    """Return the arguments of ``train.py`` in a list of command line words."""
    parser = ArgumentParser()
    train.configure(parser)
    return train.TrainArguments.from_namespace(parser.parse_args(words))


def replace_evaluation(monkeypatch, folder: Path, summary: dict[str, float], *, megabytes: float) -> Path:
    """Let each evaluation return the metrics ``summary``, and return a model file of a size, which is not read."""

    class Metrics:
        def summary(self):
            return summary

    monkeypatch.setattr(mask_rcnn, 'load', lambda path, gpu: None)
    monkeypatch.setattr(evaluate, 'evaluate_to_folder', lambda *arguments, name: Metrics())
    model_file = folder / 'model.npz'
    with open(model_file, 'wb') as file:
        file.truncate(int(megabytes * 1e6))
    return model_file
