"""``train.py`` with one block per ResNet stage: a program for tests, and its usual arguments."""

import sys

SMALL = (1, 1, 1, 1)

#: Images of 64 pixels, 16 RoIs per image, random initial weights, on the CPU.
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
    """Run the command line program with the small network."""
    from mask_rcnn.cli import train
    from mask_rcnn.config import RESNET_BLOCKS

    RESNET_BLOCKS['resnet50'] = SMALL
    return train.main(argv)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
