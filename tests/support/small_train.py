"""``train.py`` with a ResNet of one block a stage: a program for tests, and what they give it."""

import sys

SMALL = (1, 1, 1, 1)

#: Shapes of 64 pixels, 16 RoIs an image, from scratch, on the CPU.
ARGUMENTS = [
    '--dataset',
    'shapes',
    '--min-size',
    '64',
    '--roi-batch',
    '16',
    '--pretrained',
    'none',
    '--batchsize',
    '2',
    '--validation',
    '0',
    '--gpu',
    '-1',
    '--workers',
    '0',
]


def main(argv):
    from mask_rcnn.cli import train
    from mask_rcnn.config import RESNET_BLOCKS

    RESNET_BLOCKS['resnet50'] = SMALL
    return train.main(argv)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
