"""Options of ``train.py`` that make an iteration cheap, for tests of whole runs."""

#: Shapes of 64 pixels and 16 RoIs per image, on the CPU.
RUN = [
    *('--dataset', 'shapes', '--min-size', '64', '--max-size', '64', '--roi-batch', '16', '--batchsize', '2'),
    *('--validation', '0', '--gpu', '-1', '--workers', '0'),
]

#: A network of 0.3 million parameters, from scratch.
NETWORK = [
    *('--extractor', 'mobilenet_v1_fpn', '--pretrained', 'none'),
    *('--set', 'width=0.25', 'fpn_channels=16', 'head_channels=32', 'mask_channels=16'),
]
