"""Mask R-CNN in plain PyTorch: the peer of ``benchmark.py --against``.

    python torch_mask_rcnn.py FOLDER [--network torch|torchvision] [--device cpu] [--threads 2] [--precision fp32]

``FOLDER`` contains ``image.npy`` ((H, W, 3) uint8, RGB), ``weights.npz`` (arrays in the native format) and
``setup.json``.  ``torch`` is the network of the weights, C4 or FPN, computed like Detectron and detectron2: weights in
channels-last layout, normalisation folded, all RoIs in one batch, no gradients.  RoIAlign and NMS are torchvision's if
it is installed, otherwise a sparse matrix multiplication and a loop.  ``torchvision`` is torchvision's
``maskrcnn_resnet50_fpn`` with random weights; if the folder contains the state dict ``model.pth``, that network or
``maskrcnn_resnet50_fpn_v2`` with these weights and the settings of the setup.

For each line on the standard input the program makes one prediction, from the image on the host to the masks on the
host, and prints a line of JSON: wall-clock and CPU seconds, the number of detections, and memory in bytes.  The memory
of a GPU is the maximum that PyTorch's allocator reserved, and the decrease of free memory (``cudaMemGetInfo``) since
before the network was built.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

try:
    from torchvision import ops as vision_ops
except ImportError:
    vision_ops = None

#: ``log(1000 / 16)``, Detectron's ``BBOX_XFORM_CLIP``.
_MAX_LOG_SCALE = 4.135166556742356


class Network(nn.Module):
    """The parts that both networks share, and the weights.

    Args:
        arrays: Weights by parameter path.
        setup: The configuration, and the cell anchors of each level.
    """

    def __init__(self, arrays, setup):
        super().__init__()
        self.arrays, self.setup = arrays, setup
        self.rpn_conv = self.conv('rpn/conv', pad=1)
        self.objectness = self.conv('rpn/objectness')
        self.rpn_delta = self.conv('rpn/delta')
        self.score = self.linear('box_head/score')
        self.delta = self.linear('box_head/delta')
        self.mask_deconv = self.deconv('mask_head/deconv')
        self.mask_score = self.conv('mask_head/score')

    def conv(self, path, *, stride=1, pad=0):
        """Return a convolution with its normalisation, if any, folded into it."""
        plain = f'{path}/W' in self.arrays
        weight = self.arrays[f'{path}/W' if plain else f'{path}/conv/W']
        bias = self.arrays[f'{path}/b'] if plain else self.arrays[f'{path}/norm/bias']
        if not plain:
            weight = weight * self.arrays[f'{path}/norm/scale'][:, None, None, None]
        module = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride, pad)
        return _filled(module, weight, bias)

    def deconv(self, path):
        weight = self.arrays[f'{path}/W']
        module = nn.ConvTranspose2d(*weight.shape[:2], weight.shape[2], 2)
        return _filled(module, weight, self.arrays[f'{path}/b'])

    def linear(self, path):
        weight = self.arrays[f'{path}/W']
        return _filled(nn.Linear(weight.shape[1], weight.shape[0]), weight, self.arrays[f'{path}/b'])

    def stage(self, path, n_block, stride):
        """Return a ResNet's stage."""
        return nn.Sequential(*(Bottleneck(self, f'{path}/block{i}', stride if i == 0 else 1) for i in range(n_block)))

    def forward(self, image):
        """Return the boxes, labels, scores and masks of an image ``(3, H, W)`` on the host."""
        x, scale = self.prepare(image)
        features = self.extract(x)
        rois = self.propose(features, x.shape[2:])
        boxes, labels, scores = self.classify(features, rois, scale, image.shape[1:])
        logits = self.masks(features, boxes * scale)
        probs = logits[torch.arange(len(labels), device=labels.device), labels].float().sigmoid()
        boxes, labels, scores, probs = (part.cpu() for part in (boxes, labels, scores, probs))
        return boxes, labels, scores, paste(probs, boxes, image.shape[1:])

    def prepare(self, image):
        mean = torch.tensor(self.setup['pixel_mean'], device=image.device)[:, None, None]
        x = (image.flip(0) - mean)[None]
        height, width = image.shape[1:]
        scale = min(self.setup['min_size'] / min(height, width), self.setup['max_size'] / max(height, width))
        size = round(height * scale), round(width * scale)
        x = F.interpolate(x, size, mode='bilinear', align_corners=False)
        divisor = self.setup['size_divisor']
        x = F.pad(x, (0, -size[1] % divisor, 0, -size[0] % divisor))
        return x.to(memory_format=torch.channels_last), scale

    def propose(self, features, size):
        """Return the proposals ``(K, 4)`` as ``(x1, y1, x2, y2)``: the best of each level after NMS."""
        levels = [(logits[0], deltas[0], anchors) for logits, deltas, anchors in self.rpn(features)]
        return self.select_proposals(levels, size, self.setup['rpn_pre_nms'], self.setup['rpn_post_nms'])

    def rpn(self, features):
        """Return, for each level, logits ``(N, K)``, deltas ``(N, K, 4)`` and anchors ``(K, 4)``."""
        levels = []
        anchors = self.setup['cell_anchors'], self.setup['strides']
        for x, cell, stride in zip(features, *anchors, strict=True):
            h = F.relu_(self.rpn_conv(x))
            logits = self.objectness(h).permute(0, 2, 3, 1).flatten(1).float()
            deltas = self.rpn_delta(h).permute(0, 2, 3, 1).reshape(len(x), -1, 4).float()[..., [1, 0, 3, 2]]
            levels.append((logits, deltas, all_anchors(cell, stride, x.shape[2:], x.device)))
        return levels

    def select_proposals(self, levels, size, pre_nms, post_nms):
        """Return the proposals ``(K, 4)`` of an image; ``levels`` holds the logits, deltas and anchors of each."""
        boxes, scores, groups = [], [], []
        for level, (logits, deltas, anchors) in enumerate(levels):
            best = logits.topk(min(pre_nms, len(logits))).indices
            boxes.append(clip(decode(anchors[best], deltas[best], 1.0), size))
            scores.append(logits[best])
            groups.append(torch.full_like(best, level))
        boxes, scores, groups = map(torch.cat, (boxes, scores, groups))
        return boxes[grouped_nms(boxes, scores, groups, self.setup['rpn_nms_threshold'], post_nms)]

    def classify(self, features, rois, scale, size):
        scores, deltas = self.name(features, rois)
        probs = scores.float().softmax(1)
        deltas = deltas.float().reshape(len(rois), -1, 4)[..., [1, 0, 3, 2]]
        weights = torch.tensor([10.0, 10.0, 5.0, 5.0], device=rois.device)
        boxes = clip(decode((rois / scale)[:, None], deltas, weights), size)
        chosen, labels = (probs[:, 1:] > self.setup['score_threshold']).nonzero().unbind(1)
        boxes, scores = boxes[chosen, labels + 1], probs[chosen, labels + 1]
        keep = grouped_nms(boxes, scores, labels, self.setup['nms_threshold'], len(boxes))
        keep = keep[: self.setup['max_detections']]
        return boxes[keep], labels[keep], scores[keep]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut, with the stride in the first, as in the Caffe ResNets."""

    def __init__(self, network, path, stride):
        super().__init__()
        self.conv1 = network.conv(f'{path}/conv1', stride=stride)
        self.conv2 = network.conv(f'{path}/conv2', pad=1)
        self.conv3 = network.conv(f'{path}/conv3')
        has_shortcut = f'{path}/shortcut/conv/W' in network.arrays
        self.shortcut = network.conv(f'{path}/shortcut', stride=stride) if has_shortcut else None

    def forward(self, x):
        h = F.relu_(self.conv2(F.relu_(self.conv1(x))))
        return F.relu_(self.conv3(h).add_(x if self.shortcut is None else self.shortcut(x)))


class C4(Network):
    """Features of res4, RoIs of 14 x 14 bins, res5 on each of them."""

    def __init__(self, arrays, setup):
        super().__init__(arrays, setup)
        blocks = setup['blocks']
        self.conv1 = self.conv('extractor/conv1', stride=2, pad=3)
        self.body = nn.Sequential(
            *(self.stage(f'extractor/res{n}', blocks[n - 2], 1 if n == 2 else 2) for n in (2, 3, 4))
        )
        self.res5 = self.stage('box_head/res5', blocks[3], 2)

    def extract(self, x):
        return [self.body(F.max_pool2d(F.relu_(self.conv1(x)), 3, 2, 1))]

    def features(self, features, rois):
        return self.res5(roi_align(features[0], rois, 14, 1 / 16, self.setup['sampling_ratio']))

    def name(self, features, rois):
        h = self.features(features, rois).mean((2, 3))
        return self.score(h), self.delta(h)

    def masks(self, features, rois):
        return self.mask_score(F.relu_(self.mask_deconv(self.features(features, rois))))


class FPN(Network):
    """The feature pyramid on res2 to res5, a box head of two linear layers, a mask head of four convolutions."""

    def __init__(self, arrays, setup):
        super().__init__(arrays, setup)
        body = 'extractor/body'
        self.conv1 = self.conv(f'{body}/conv1', stride=2, pad=3)
        self.stages = nn.ModuleList(
            self.stage(f'{body}/res{n}', setup['blocks'][n - 2], 1 if n == 2 else 2) for n in (2, 3, 4, 5)
        )
        self.laterals = nn.ModuleList(self.conv(f'extractor/lateral{n}') for n in (2, 3, 4, 5))
        self.outputs = nn.ModuleList(self.conv(f'extractor/output{n}', pad=1) for n in (2, 3, 4, 5))
        self.fc6, self.fc7 = self.linear('box_head/fc6'), self.linear('box_head/fc7')
        self.mask_convs = nn.ModuleList(self.conv(f'mask_head/conv{i}', pad=1) for i in (1, 2, 3, 4))

    def extract(self, x):
        x = F.max_pool2d(F.relu_(self.conv1(x)), 3, 2, 1)
        bottom_up = []
        for stage in self.stages:
            x = stage(x)
            bottom_up.append(x)
        features: list[torch.Tensor] = []
        above = None
        for x, lateral, output in reversed(list(zip(bottom_up, self.laterals, self.outputs, strict=True))):
            h = lateral(x)
            above = h if above is None else h.add_(F.interpolate(above, scale_factor=2.0, mode='nearest'))
            features.insert(0, output(above))
        return [*features, features[-1][:, :, ::2, ::2]]

    def pool(self, features, rois, size):
        sides = rois[:, -2:] - rois[:, -4:-2] + 1
        levels = (4 + ((sides[:, 0] * sides[:, 1]).sqrt() / 224 + 1e-6).log2()).floor().clamp(2, 5).long()
        pooled = rois.new_empty((len(rois), features[0].shape[1], size, size), dtype=features[0].dtype)
        pooled = pooled.to(memory_format=torch.channels_last)
        for level in (2, 3, 4, 5):
            rows = (levels == level).nonzero()[:, 0]
            if len(rows):
                samples = self.setup['sampling_ratio']
                pooled[rows] = roi_align(features[level - 2], rois[rows], size, 1 / 2**level, samples)
        return pooled

    def name(self, features, rois):
        h = self.pool(features, rois, 7).flatten(1)
        h = F.relu_(self.fc7(F.relu_(self.fc6(h))))
        return self.score(h), self.delta(h)

    def masks(self, features, rois):
        h = self.pool(features, rois, 14)
        for conv in self.mask_convs:
            h = F.relu_(conv(h))
        return self.mask_score(F.relu_(self.mask_deconv(h)))


def _filled(module, weight, bias):
    module.weight.data, module.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
    return module


# Boxes are (x1, y1, x2, y2), and x2 - x1 + 1 wide.


def all_anchors(cell, stride, size, device):
    """Return the anchors ``(H * W * A, 4)`` of a level; ``cell`` holds ``(y1, x1, y2, x2)``."""
    cell = torch.tensor(cell, dtype=torch.float32, device=device)[:, [1, 0, 3, 2]]
    y, x = torch.meshgrid(*(torch.arange(side, device=device) * stride for side in size), indexing='ij')
    return (torch.stack([x, y, x, y], -1).reshape(-1, 1, 4) + cell).reshape(-1, 4)


def decode(boxes, deltas, weights):
    sides = boxes[..., 2:] - boxes[..., :2] + 1
    deltas = deltas / weights
    centres = boxes[..., :2] + 0.5 * sides + deltas[..., :2] * sides
    half = 0.5 * sides * deltas[..., 2:].clamp(max=_MAX_LOG_SCALE).exp()
    return torch.cat([centres - half, centres + half - 1], -1)


def clip(boxes, size):
    limit = torch.tensor([size[1] - 1, size[0] - 1] * 2, dtype=boxes.dtype, device=boxes.device)
    return torch.minimum(boxes.clamp(min=0), limit)


def grouped_nms(boxes, scores, groups, threshold, limit):
    """Return the indices of the kept boxes, at most ``limit`` of each group and the best ``limit`` of all."""
    boxes = boxes.clone()
    boxes[:, 2:] += 1
    # Offsets separate the groups, as in torchvision's batched_nms.
    boxes += (groups.to(boxes) * (boxes.max() + 1 if len(boxes) else 1))[:, None]
    if vision_ops is not None:
        keep = vision_ops.nms(boxes, scores, threshold)
    else:
        keep = torch.from_numpy(_nms(boxes.cpu().numpy(), scores.cpu().numpy(), threshold)).to(boxes.device)
    return keep[:limit]


def _nms(boxes, scores, threshold):
    order = np.argsort(-scores, kind='stable')
    x1, y1, x2, y2 = (np.ascontiguousarray(side) for side in boxes[order].T)
    areas = (x2 - x1) * (y2 - y1)
    kept, left = [], np.arange(len(order))
    while len(left):
        i, left = left[0], left[1:]
        kept.append(order[i])
        width = np.minimum(x2[i], x2[left]) - np.maximum(x1[i], x1[left])
        height = np.minimum(y2[i], y2[left]) - np.maximum(y1[i], y1[left])
        overlap = np.maximum(width, 0) * np.maximum(height, 0)
        left = left[overlap <= threshold * (areas[i] + areas[left] - overlap)]
    return np.array(kept, np.int64)


def roi_align(x, rois, size, scale, samples):
    """Return ``(R, C, size, size)``, channels last; ``aligned=False``, ``samples ** 2`` points per bin.

    ``rois`` are boxes ``(R, 4)`` in the first image, or ``(R, 5)`` with the index of the image in the first column.
    """
    if vision_ops is not None:
        # The coordinates stay in float32, in which autocast computes RoIAlign: float16 would round them to pixels.
        batch = rois if rois.shape[1] == 5 else torch.cat([rois.new_zeros((len(rois), 1)), rois], 1)
        pooled = vision_ops.roi_align(x, batch, (size, size), scale, samples)
        return pooled.to(memory_format=torch.channels_last)
    # A bin is a weighted sum of pixels, with the same weights for all channels: a sparse matrix times the pixels.
    samples = samples or 2
    x_points = _sample_points(rois[:, 0] * scale, rois[:, 2] * scale, size, samples, x.shape[3])
    y_points = _sample_points(rois[:, 1] * scale, rois[:, 3] * scale, size, samples, x.shape[2])
    n, taps = len(rois), 2 * samples
    pixels = y_points[0].view(n, size, 1, taps, 1) * x.shape[3] + x_points[0].view(n, 1, size, 1, taps)
    factors = y_points[1].view(n, size, 1, taps, 1) * x_points[1].view(n, 1, size, 1, taps)
    rows = n * size * size
    matrix = torch.sparse_csr_tensor(
        torch.arange(0, rows * taps * taps + 1, taps * taps, device=x.device),
        pixels.reshape(-1),
        factors.reshape(-1),
        (rows, x.shape[2] * x.shape[3]),
    )
    pooled = matrix @ x[0].permute(1, 2, 0).reshape(-1, x.shape[1]).float()
    return pooled.view(n, size, size, -1).permute(0, 3, 1, 2).to(x.dtype)


def _sample_points(low, high, size, samples, length):
    """Return the pixels and their weights along one axis, each ``(R, size, 2 * samples)``."""
    bin_size = (high - low).clamp(min=1.0) / size
    steps = (torch.arange(size * samples, device=low.device) + 0.5) / samples
    position = low[:, None] + steps * bin_size[:, None]
    inside = ((position >= -1) & (position <= length)).float() / samples
    position = position.clamp(min=0)
    pixel = position.floor().clamp(max=length - 1)
    position = torch.where(pixel >= length - 1, pixel, position)
    fraction = position - pixel
    pixels = torch.stack([pixel, (pixel + 1).clamp(max=length - 1)], -1).long()
    weights = torch.stack([1 - fraction, fraction], -1) * inside[..., None]
    return pixels.view(len(low), size, -1), weights.view(len(low), size, -1)


def paste(probs, boxes, size):
    """Return the masks ``(R, H, W)`` bool; each is resized within its box, as detectron2 does on the CPU."""
    masks = torch.zeros((len(probs), *size), dtype=torch.bool)
    padded = F.pad(probs, (1, 1, 1, 1))
    growth = padded.shape[1] / probs.shape[1] if len(probs) else 1.0
    centres, half = (boxes[:, 2:] + boxes[:, :2]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * growth
    grown = torch.cat([centres - half, centres + half], 1).int().tolist()
    for mask, prob, (left, top, right, bottom) in zip(masks, padded, grown, strict=True):
        resized = (
            F.interpolate(
                prob[None, None],
                (max(bottom - top + 1, 1), max(right - left + 1, 1)),
                mode='bilinear',
                align_corners=False,
            )[0, 0]
            > 0.5
        )
        y, x, y_end, x_end = max(top, 0), max(left, 0), min(bottom + 1, size[0]), min(right + 1, size[1])
        mask[y:y_end, x:x_end] = resized[y - top : y_end - top, x - left : x_end - left]
    return masks


def load(args):
    """Return a function without arguments that predicts boxes, labels, scores and masks of the image."""
    setup = json.loads((args.folder / 'setup.json').read_text())
    on_host = torch.from_numpy(np.load(args.folder / 'image.npy'))
    if args.network == 'torchvision':
        path = args.folder / 'model.pth'
        model = trained_torchvision_model(setup, path) if path.exists() else torchvision_model(setup)
    else:
        model = (FPN if setup['fpn'] else C4)(dict(np.load(args.folder / 'weights.npz')), setup)
    model = model.eval().to(args.device, memory_format=torch.channels_last)
    dtype = {'fp16': torch.float16, 'bf16': torch.bfloat16}.get(args.precision)

    def predict():
        image = on_host.to(args.device).permute(2, 0, 1).float()
        images = [image / 255] if args.network == 'torchvision' else image
        autocast = torch.autocast(args.device.split(':')[0], dtype, enabled=dtype is not None)
        with torch.inference_mode(), autocast:
            found = model(images)
        if args.network == 'torchvision':
            found = [found[0][name].cpu() for name in ('boxes', 'labels', 'scores', 'masks')]
        return found

    return predict


def torchvision_model(setup):
    """Return torchvision's network with random weights, with the image size and proposals of the setup."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    return maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        min_size=setup['min_size'],
        max_size=setup['max_size'],
        rpn_pre_nms_top_n_test=setup['rpn_pre_nms'],
        rpn_post_nms_top_n_test=setup['rpn_post_nms'],
        box_score_thresh=0.0,
    )  # random scores are low: keep as many detections as the other network


def trained_torchvision_model(setup, path):
    """Return torchvision's network with the weights of a state dict and the settings of the setup."""
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    settings = {
        'num_classes': setup['n_fg_class'] + 1,
        'min_size': setup['min_size'],
        'max_size': setup['max_size'],
        'rpn_anchor_generator': detection.anchor_utils.AnchorGenerator(
            tuple((size,) for size in setup['anchor_sizes']),
            (tuple(setup['anchor_ratios']),) * len(setup['anchor_sizes']),
        ),
        'rpn_pre_nms_top_n_test': setup['rpn_pre_nms'],
        'rpn_post_nms_top_n_test': setup['rpn_post_nms'],
        'rpn_nms_thresh': setup['rpn_nms_threshold'],
        'box_score_thresh': setup['score_threshold'],
        'box_nms_thresh': setup['nms_threshold'],
        'box_detections_per_img': setup['max_detections'],
    }
    if setup['head_norm'] == 'none':  # with frozen normalisations, as in the published models of the first version
        model = detection.MaskRCNN(resnet_fpn_backbone(backbone_name='resnet50', weights=None), **settings)
    else:
        settings.pop('rpn_anchor_generator')  # that of this version has a builder of its own
        model = detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **settings)
    model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    for module in model.modules():
        if hasattr(module, 'eps'):
            module.eps = setup['bn_eps']
    return model


def serve(work, device: str, free: int) -> None:
    """Work once per line on the standard input and print the time, the memory and the result.

    Args:
        work: Returns its result as plain data by name.
        device: Device of the network.
        free: Result of :func:`free_memory` before the network was built.
    """
    print(
        json.dumps(
            {
                'torch': torch.__version__,
                'torchvision': vision_ops is not None,
                'torch_cuda': torch.version.cuda,
                'torch_cudnn': torch.backends.cudnn.version(),
            }
        ),
        flush=True,
    )
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        turn = {
            'wall': time.perf_counter() - wall,
            'cpu': time.process_time() - cpu,
            **result,
            'host_peak': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        if device != 'cpu':
            turn |= {'gpu_pool': torch.cuda.max_memory_reserved(device), 'gpu_used': free - free_memory(device)}
        print(json.dumps(turn), flush=True)


def free_memory(device: str) -> int:
    """Return the free memory of a GPU in bytes; 0 for the CPU."""
    return 0 if device == 'cpu' else torch.cuda.mem_get_info(device)[0]


def parse_arguments(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Add the arguments that all peers share, parse them, and set up PyTorch."""
    parser.add_argument('folder', type=Path)
    parser.add_argument('--network', choices=('torch', 'torchvision'), default='torch')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--precision', choices=('fp32', 'tf32', 'fp16', 'bf16'), default='fp32')
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.precision == 'tf32'
    torch.backends.cudnn.benchmark = True
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the peer; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--dump', type=Path, metavar='FILE.npz', help='write one prediction and exit')
    args = parse_arguments(parser, argv)
    free = free_memory(args.device)
    predict = load(args)
    if args.dump:
        names = ('boxes', 'labels', 'scores', 'masks')
        np.savez(args.dump, **{name: part.numpy() for name, part in zip(names, predict(), strict=True)})
    else:
        serve(lambda: {'detections': len(predict()[0])}, args.device, free)
    return 0


if __name__ == '__main__':
    sys.exit(main())
