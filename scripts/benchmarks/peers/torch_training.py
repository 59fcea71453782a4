"""Training iterations of Mask R-CNN in PyTorch: the peer of ``training.py --against``.

    python torch_training.py FOLDER [--network torch|torchvision] [--device cpu] [--threads 2] [--precision fp32]

``FOLDER`` contains ``weights.npz``, ``setup.json`` and ``batch.npz``: network inputs ``x`` ((N, 3, h, w) float32),
boxes ((N, G, 4) float32, ``(y1, x1, y2, x2)``), labels ((N, G), 0 is the first class) and masks ((N, G, h, w) uint8) of
the objects in the input.  ``torch`` is the network of the weights, C4 or FPN, trained like Detectron and detectron2:
weights in channels-last layout, frozen affine channels that are folded into the weights in every iteration, targets
computed on the device.  ``torchvision`` is torchvision's ``maskrcnn_resnet50_fpn`` with random weights and frozen batch
normalisation.  Both need torchvision.  float16 and bfloat16 use autocast, float16 also a ``GradScaler``.

For each line on the standard input the program runs one iteration, from the batch in pinned memory of the host to the
updated weights, and prints a line of JSON as ``torch_mask_rcnn.py`` does, with the losses.  The random numbers of all
iterations are the same.  Cached memory is released after the first one, so that the trials of
``torch.backends.cudnn.benchmark`` do not count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch_mask_rcnn import C4, FPN, Network, free_memory, parse_arguments, serve
from torchvision import ops

#: The weights stay constant, so all iterations have the same numbers of RoIs.  The work does not depend on the value.
LEARNING_RATE = 0.0
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4

#: Initial scale of the loss in float16, as in Chainer: with the default of ``GradScaler``, 65536, the gradients of the
#: first iterations overflow, and their updates are skipped.
LOSS_SCALE = 1.0

#: Weights of ``(dx, dy, dw, dh)`` in the regression targets of the box head.
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)

#: The names of torchvision's losses.
LOSS_NAMES = {
    'loss_objectness': 'rpn_cls_loss',
    'loss_rpn_box_reg': 'rpn_loc_loss',
    'loss_classifier': 'roi_cls_loss',
    'loss_box_reg': 'roi_loc_loss',
    'loss_mask': 'roi_mask_loss',
}


class AffineConv(nn.Module):
    """A convolution without bias and a frozen affine channel layer, which is folded into its weight."""

    def __init__(self, arrays, path, stride, pad):
        super().__init__()
        self.stride, self.pad = stride, pad
        self.weight = nn.Parameter(torch.from_numpy(arrays[f'{path}/conv/W']))
        self.register_buffer('scale', torch.from_numpy(arrays[f'{path}/norm/scale'])[:, None, None, None])
        self.register_buffer('bias', torch.from_numpy(arrays[f'{path}/norm/bias']))

    def forward(self, x):
        return F.conv2d(x, self.weight * self.scale, self.bias, self.stride, self.pad)


class Trained(Network):
    """The training step of both networks: targets, sampling and losses.  RoIs are ``(image, x1, y1, x2, y2)``."""

    def conv(self, path, *, stride=1, pad=0):
        if f'{path}/W' in self.arrays:
            return super().conv(path, stride=stride, pad=pad)
        return AffineConv(self.arrays, path, stride, pad)

    def freeze(self):
        for stage in self.bottom_up()[: self.setup['frozen_stages']]:
            stage.requires_grad_(False)

    def losses(self, x, boxes, labels, masks):
        """Return the losses of a batch, each a mean over the images."""
        features = self.extract(x)
        levels = self.rpn(features)
        rois = [
            self.sample_rois(
                [(logits[i].detach(), deltas[i].detach(), anchors) for logits, deltas, anchors in levels],
                boxes[i],
                labels[i],
                masks[i],
            )
            for i in range(len(x))
        ]
        logits, deltas, anchors = zip(*levels, strict=True)
        logits, deltas, anchors = torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(anchors)
        return {**self.rpn_losses(logits, deltas, anchors, boxes), **self.roi_losses(features, rois)}

    def rpn_losses(self, logits, deltas, anchors, boxes):
        """Return the losses of the RPN: logits ``(N, K)``, deltas ``(N, K, 4)``, anchors ``(K, 4)``.

        Each is a mean over the sampled anchors of an image; as in Detectron, the objectness loss of an FPN is divided
        by the number to sample, even if there are fewer.
        """
        cls_loss, loc_loss = 0.0, 0.0
        for image_logits, image_deltas, image_boxes in zip(logits, deltas, boxes, strict=True):
            positive, negative, targets = self.anchor_targets(anchors, image_boxes)
            sampled = torch.cat([positive, negative])
            labels = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)]).float()
            count = self.setup['sampling']['rpn_batch'] if self.setup['fpn'] else len(sampled)
            cls_loss += F.binary_cross_entropy_with_logits(image_logits[sampled], labels, reduction='sum') / count
            beta = self.setup['rpn_smooth_l1_beta']
            loc_loss += F.smooth_l1_loss(image_deltas[positive], targets, reduction='sum', beta=beta) / len(sampled)
        return {'rpn_cls_loss': cls_loss / len(logits), 'rpn_loc_loss': loc_loss / len(logits)}

    def anchor_targets(self, anchors, boxes):
        """Return the indices of the sampled positive and negative anchors, and the deltas of the positive ones."""
        sampling = self.setup['sampling']
        height, width = self.setup['input_size']
        limit = torch.tensor([width, height], device=anchors.device)
        inside = ((anchors[:, :2] >= 0) & (anchors[:, 2:] < limit)).all(1)
        iou = box_iou(anchors, boxes) * inside[:, None]
        best, match = iou.max(1)
        best_of_box = iou.max(0).values
        is_best = ((iou == best_of_box) & (best_of_box > 0)).any(1)
        positive = sample(
            inside & (is_best | (best >= sampling['rpn_positive_iou'])),
            int(sampling['rpn_positive_fraction'] * sampling['rpn_batch']),
        )
        negative = sample(
            inside & ~is_best & (best < sampling['rpn_negative_iou']), sampling['rpn_batch'] - len(positive)
        )
        return positive, negative, encode(anchors[positive], boxes[match[positive]], (1.0, 1.0, 1.0, 1.0))

    @torch.no_grad()
    def sample_rois(self, levels, boxes, labels, masks):
        """Return the sampled RoIs of an image ``(R, 4)`` and their labels ``(R,)``, and targets of the foreground.

        The foreground comes first.  The targets are deltas ``(F, 4)`` and masks ``(F, M, M)``.
        """
        sampling = self.setup['sampling']
        proposals = self.select_proposals(
            levels, self.setup['input_size'], sampling['train_pre_nms'], sampling['train_post_nms']
        )
        candidates = torch.cat([boxes, proposals])
        best, match = box_iou(candidates, boxes).max(1)
        foreground = sample(
            best >= sampling['roi_foreground_iou'], round(sampling['roi_foreground_fraction'] * sampling['roi_batch'])
        )
        background = sample(best < sampling['roi_foreground_iou'], sampling['roi_batch'] - len(foreground))
        rois, match = candidates[foreground], match[foreground]
        roi_labels = torch.cat([labels[match] + 1, torch.zeros_like(background)])
        deltas = encode(rois, boxes[match], BOX_WEIGHTS)
        indexed = torch.cat([match[:, None].to(rois), rois], 1)
        mask_targets = ops.roi_align(masks[:, None].float(), indexed, (self.mask_size, self.mask_size))[:, 0]
        return torch.cat([rois, candidates[background]]), roi_labels, deltas, (mask_targets >= 0.5).float()

    def roi_losses(self, features, sampled):
        """Return the losses of the heads; ``sampled`` holds the results of ``sample_rois`` of each image."""
        images = [torch.full_like(boxes[:, :1], i) for i, (boxes, *_) in enumerate(sampled)]
        boxes, labels, targets, mask_targets = (torch.cat(parts) for parts in zip(*sampled, strict=True))
        foreground = labels.nonzero()[:, 0]
        classes = labels[foreground]
        scores, deltas, mask_logits = self.heads(features, torch.cat([torch.cat(images), boxes], 1), foreground)
        deltas = deltas.float().reshape(len(labels), -1, 4)[foreground, classes][:, [1, 0, 3, 2]]
        rows = torch.arange(len(classes), device=classes.device)
        beta = self.setup['box_smooth_l1_beta']
        return {
            'roi_cls_loss': F.cross_entropy(scores.float(), labels),
            'roi_loc_loss': F.smooth_l1_loss(deltas, targets, reduction='sum', beta=beta) / len(labels),
            'roi_mask_loss': F.binary_cross_entropy_with_logits(mask_logits[rows, classes - 1].float(), mask_targets),
        }


class TrainedC4(Trained, C4):
    """The C4 network; the mask head shares the features of the box head."""

    mask_size = 14

    def bottom_up(self):
        return [self.conv1, *self.body]

    def heads(self, features, rois, foreground):
        """Return scores, deltas, and the mask logits of the foreground."""
        h = self.features(features, rois)
        pooled = h.mean((2, 3))
        masks = self.mask_score(F.relu_(self.mask_deconv(h[foreground])))
        return self.score(pooled), self.delta(pooled), masks


class TrainedFPN(Trained, FPN):
    """The FPN network."""

    mask_size = 28

    def bottom_up(self):
        return [self.conv1, *self.stages]

    def heads(self, features, rois, foreground):
        """Return scores, deltas, and the mask logits of the foreground."""
        return *self.name(features, rois), self.masks(features, rois[foreground])


class TorchvisionNetwork(nn.Module):
    """torchvision's ``maskrcnn_resnet50_fpn`` with random weights, and sizes and sampling of the setup."""

    def __init__(self, setup):
        super().__init__()
        from torchvision.models.detection import MaskRCNN
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

        self.size, sampling = setup['input_size'], setup['sampling']
        backbone = resnet_fpn_backbone(
            backbone_name='resnet50',
            weights=None,
            norm_layer=ops.FrozenBatchNorm2d,
            trainable_layers=5 - setup['frozen_stages'],
        )
        for name, module in backbone.named_modules():
            if name.endswith('bn3'):
                module.weight.fill_(0.2)  # keeps activations near 1 through the residual sums
        self.model = MaskRCNN(
            backbone,
            setup['n_classes'],
            min_size=min(self.size),
            max_size=max(self.size),
            image_mean=[0.0] * 3,
            image_std=[64.0] * 3,
            rpn_pre_nms_top_n_train=sampling['train_pre_nms'],
            rpn_post_nms_top_n_train=sampling['train_post_nms'],
            rpn_batch_size_per_image=sampling['rpn_batch'],
            rpn_positive_fraction=sampling['rpn_positive_fraction'],
            rpn_fg_iou_thresh=sampling['rpn_positive_iou'],
            rpn_bg_iou_thresh=sampling['rpn_negative_iou'],
            box_batch_size_per_image=sampling['roi_batch'],
            box_positive_fraction=sampling['roi_foreground_fraction'],
            box_fg_iou_thresh=sampling['roi_foreground_iou'],
            box_bg_iou_thresh=sampling['roi_foreground_iou'],
        )

    def losses(self, x, boxes, labels, masks):
        """Return the losses of a batch."""
        height, width = self.size
        targets = [
            {'boxes': image_boxes, 'labels': image_labels + 1, 'masks': image_masks}
            for image_boxes, image_labels, image_masks in zip(boxes, labels, masks, strict=True)
        ]
        losses = self.model([image[:, :height, :width] for image in x], targets)
        return {LOSS_NAMES[name]: loss for name, loss in losses.items()}


def sample(chosen, count):
    """Return at most ``count`` random indices of the true elements."""
    indices = chosen.nonzero()[:, 0]
    return indices[torch.randperm(len(indices), device=indices.device)[:count]]


def box_iou(boxes, others):
    """Return the IoU ``(K, G)`` of boxes that are ``x2 - x1 + 1`` wide."""
    one = torch.tensor([0.0, 0.0, 1.0, 1.0], device=boxes.device)
    return ops.box_iou(boxes + one, others + one)


def encode(boxes, targets, weights):
    """Return the deltas ``(K, 4)`` from boxes to targets: the inverse of ``torch_mask_rcnn.decode``."""
    sizes, target_sizes = boxes[:, 2:] - boxes[:, :2] + 1, targets[:, 2:] - targets[:, :2] + 1
    offsets = targets[:, :2] + 0.5 * target_sizes - boxes[:, :2] - 0.5 * sizes
    deltas = torch.cat([offsets / sizes, (target_sizes / sizes).log()], 1)
    return deltas * torch.tensor(weights, device=boxes.device)


def load_batch(path, device):
    """Return the batch on the host, in pinned memory for a GPU."""
    with np.load(path) as arrays:
        batch = {
            'x': torch.from_numpy(arrays['x']),
            'boxes': torch.from_numpy(np.ascontiguousarray(arrays['boxes'][..., [1, 0, 3, 2]])),
            'labels': torch.from_numpy(arrays['labels']).long(),
            'masks': torch.from_numpy(arrays['masks']),
        }
    return batch if device == 'cpu' else {name: tensor.pin_memory() for name, tensor in batch.items()}


def load_network(args, setup):
    """Return the network in training mode on its device, with frozen stages."""
    if args.network == 'torchvision':
        network = TorchvisionNetwork(setup)
    else:
        network = (TrainedFPN if setup['fpn'] else TrainedC4)(dict(np.load(args.folder / 'weights.npz')), setup)
        network.freeze()
    return network.train().to(args.device, memory_format=torch.channels_last)


def make_optimizer(network):
    """Return momentum SGD; biases have twice the learning rate and no weight decay, as in Detectron."""
    params = [(name, param) for name, param in network.named_parameters() if param.requires_grad]
    weights = [param for name, param in params if not name.endswith('bias')]
    biases = [param for name, param in params if name.endswith('bias')]
    groups = [{'params': weights}, {'params': biases, 'lr': 2 * LEARNING_RATE, 'weight_decay': 0.0}]
    return torch.optim.SGD(groups, LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def load(args):
    """Return a function without arguments that runs one iteration and returns the losses."""
    torch.manual_seed(0)
    network = load_network(args, json.loads((args.folder / 'setup.json').read_text()))
    batch = load_batch(args.folder / 'batch.npz', args.device)
    optimizer, device = make_optimizer(network), args.device.split(':')[0]
    dtype = {'fp16': torch.float16, 'bf16': torch.bfloat16}.get(args.precision)
    scaler = torch.amp.GradScaler(device, init_scale=LOSS_SCALE, enabled=dtype == torch.float16)
    iterations = itertools.count()

    def step():
        torch.manual_seed(0)
        tensors = {name: tensor.to(args.device, non_blocking=True) for name, tensor in batch.items()}
        tensors['x'] = tensors['x'].contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        with torch.autocast(device, dtype, enabled=dtype is not None):
            losses = network.losses(**tensors)
        scaler.scale(sum(losses.values())).backward()
        scaler.step(optimizer)
        scaler.update()
        losses = {name: loss.item() for name, loss in losses.items()}
        if device == 'cuda':
            torch.cuda.synchronize(args.device)
            if next(iterations) == 0:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(args.device)
        return {'losses': losses}

    return step


def main(argv: list[str] | None = None) -> int:
    """Run the peer; returns the exit status."""
    args = parse_arguments(argparse.ArgumentParser(description=__doc__.splitlines()[0]), argv)
    free = free_memory(args.device)
    step = load(args)
    serve(step, args.device, free)
    return 0


if __name__ == '__main__':
    sys.exit(main())
