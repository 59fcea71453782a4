"""Division of a dataset into training and validation data."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_rcnn.datasets.annotation_values import AnnotationError, read_id
from mask_rcnn.datasets.coco_json import COCOFile


@dataclass(frozen=True)
class ImageGroup:
    """Images that stay on one side.

    Args:
        images: Indices of the images.
        classes: Category id -> the number of images of the group that have an object of the category.
    """

    images: tuple[int, ...]
    classes: Mapping[int | str, int]


def group_images(
    content: COCOFile, equal_images: Iterable[Sequence[int]], pattern: re.Pattern[str] | None = None
) -> list[ImageGroup]:
    """Group the images that belong together.

    Args:
        content: The annotation file.
        equal_images: Groups of equal images, see :func:`mask_rcnn.datasets.inspection.image_scan.group_equal_files`.
        pattern: Images belong together if the pattern matches the same text in their file names: the text of its
            groups, or of the whole match without groups.  Images without a match are single.

    Returns:
        The groups in the order of their first images.
    """
    parents = list(range(len(content.images)))
    joined = [list(group) for group in equal_images]
    if pattern is not None:
        by_text: dict[Any, list[int]] = defaultdict(list)
        for i, image in enumerate(content.images):
            if match := pattern.search(image.file_name):
                by_text[match.groups() or match[0]].append(i)
        joined += by_text.values()
    for group in joined:
        for i in group[1:]:
            parents[_find_root(parents, i)] = _find_root(parents, group[0])
    members: dict[int, list[int]] = defaultdict(list)
    for i in range(len(parents)):
        members[_find_root(parents, i)].append(i)
    classes = classes_of_images(content)
    return [ImageGroup(tuple(group), Counter(c for i in group for c in classes[i])) for group in members.values()]


def split_groups(groups: Sequence[ImageGroup], fraction: float, *, seed: int) -> list[bool]:
    """Choose the groups of the validation data.

    Groups are assigned class by class, the rarest class first, to the side that lacks most of it (Sechidis et al. 2011,
    "On the stratification of multi-label data").  Then groups change sides so that each class is on both sides where
    possible, and that the number of images is as near to the fraction as the groups and classes allow.

    Args:
        groups: The groups.
        fraction: Fraction of the images in the validation data, between 0 and 1.
        seed: Seed of the random order of the groups.

    Returns:
        True for each group of the validation data.

    Raises:
        ValueError: ``groups`` contains fewer than two groups.
    """
    n_images = sum(len(group.images) for group in groups)
    if n_images < 2:
        raise ValueError(f'a division needs at least 2 images, not {n_images}')
    if len(groups) < 2:
        raise ValueError('all images belong together, so that they cannot be divided')
    order = np.random.RandomState(seed).permutation(len(groups)).tolist()
    is_val = _stratify(groups, fraction, order)
    _spread_classes(groups, is_val, order)
    _balance(groups, is_val, order, min(max(round(fraction * n_images), 1), n_images - 1))
    return is_val


def select_images(content: dict, file: COCOFile, indices: Iterable[int]) -> dict:
    """Return the content of an annotation file with some of its images and their annotations.

    Everything else stays the same: categories, other fields, and the annotations themselves.

    Args:
        content: The parsed JSON.
        file: The same content, checked.
        indices: Indices of the images.
    """
    chosen = sorted(indices)
    ids = {file.images[i].image_id for i in chosen}
    annotations = [annotation for annotation in file.annotations if _image_of(annotation) in ids]
    return {**content, 'images': [file.images[i].fields for i in chosen], 'annotations': annotations}


def classes_of_images(content: COCOFile) -> list[set[int | str]]:
    """Return the category ids of the annotations of each image, without a check of the rest of the annotations."""
    index_of = {image.image_id: i for i, image in enumerate(content.images)}
    classes: list[set[int | str]] = [set() for _ in content.images]
    for annotation in content.annotations:
        image, category = _image_of(annotation), _reference(annotation, 'category_id')
        if image in index_of and category is not None:
            classes[index_of[image]].add(category)
    return classes


def _find_root(parents: list[int], i: int) -> int:
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


def _image_of(annotation: Any) -> int | str | None:
    return _reference(annotation, 'image_id')


def _reference(annotation: Any, key: str) -> int | str | None:
    try:
        return read_id(annotation.get(key), key) if isinstance(annotation, dict) else None
    except AnnotationError:
        return None


def _stratify(groups: Sequence[ImageGroup], fraction: float, order: Sequence[int]) -> list[bool]:
    """Assign each group to the side that lacks most of its rarest class."""
    totals: Counter[Any] = Counter()
    members: dict[Any, list[int]] = defaultdict(list)
    for i in order:
        totals.update(groups[i].classes)
        for category in groups[i].classes:
            members[category].append(i)
    lacks = [{c: n * share for c, n in totals.items()} for share in (1 - fraction, fraction)]
    n_images = sum(len(group.images) for group in groups)
    lacks_images = [n_images * (1 - fraction), n_images * fraction]
    is_val: dict[int, bool] = {}
    # Rarest first; the order of equal ones must not depend on the hashes of texts.
    for category in [*sorted(members, key=lambda c: (len(members[c]), str(c))), None]:
        for i in order if category is None else members[category]:
            if i in is_val:
                continue
            group = groups[i]
            needs = [(lacks[side].get(category, 0.0), lacks_images[side]) for side in (0, 1)]
            side = int(needs[1] > needs[0])
            is_val[i] = bool(side)
            lacks_images[side] -= len(group.images)
            for c, n in group.classes.items():
                lacks[side][c] -= n
    return [is_val[i] for i in range(len(groups))]


def _count_classes(groups: Sequence[ImageGroup], is_val: Sequence[bool]) -> tuple[Counter[Any], Counter[Any]]:
    """Return the number of groups with each class in the training and in the validation data."""
    counts: tuple[Counter[Any], Counter[Any]] = Counter(), Counter()
    for group, side in zip(groups, is_val, strict=True):
        counts[side].update(group.classes.keys())
    return counts


def _can_leave(group: ImageGroup, counts: Counter[Any]) -> bool:
    """Return whether each class of a group remains on its side without the group."""
    return all(counts[category] > 1 for category in group.classes)


def _move(i: int, groups: Sequence[ImageGroup], is_val: list[bool], counts: tuple[Counter[Any], Counter[Any]]) -> None:
    counts[is_val[i]].subtract(groups[i].classes.keys())
    is_val[i] = not is_val[i]
    counts[is_val[i]].update(groups[i].classes.keys())


def _spread_classes(groups: Sequence[ImageGroup], is_val: list[bool], order: Sequence[int]) -> None:
    """Move groups so that classes that are missing on one side occur there.

    A move may take other classes from their side; then groups with these classes move back.  No group moves twice.
    """
    counts = _count_classes(groups, is_val)
    members: dict[Any, list[int]] = defaultdict(list)
    for i in order:
        for category in groups[i].classes:
            members[category].append(i)
    categories = sorted((c for c in members if len(members[c]) > 1), key=lambda c: (len(members[c]), str(c)))
    moved: set[int] = set()
    fewest, best = len(categories) + 1, list(is_val)
    for _ in range(2 * len(categories) + 1):
        missing = [(c, side) for c in categories for side in (False, True) if not counts[side][c]]
        if len(missing) < fewest:
            fewest, best = len(missing), list(is_val)
        moves = (_choose_move(members[c], groups, counts[not side], moved) for c, side in missing)
        chosen = next((move for move in moves if move is not None), None)
        if chosen is None:
            break
        moved.add(chosen)
        _move(chosen, groups, is_val, counts)
    is_val[:] = best


def _choose_move(
    members: Iterable[int], groups: Sequence[ImageGroup], counts: Counter[Any], moved: set[int]
) -> int | None:
    """Return the group whose move takes the fewest classes from its side; ``counts`` are those of that side."""
    candidates = [i for i in members if i not in moved]
    if not candidates:
        return None

    def cost(i: int) -> tuple[int, int]:
        return sum(counts[c] == 1 for c in groups[i].classes), len(groups[i].images)

    return min(candidates, key=cost)


def _balance(groups: Sequence[ImageGroup], is_val: list[bool], order: Sequence[int], n_wanted: int) -> None:
    """Move groups that no class needs until the number of validation images is nearest to ``n_wanted``."""
    counts = _count_classes(groups, is_val)
    n_val = sum(len(group.images) for group, side in zip(groups, is_val, strict=True) if side)
    n_groups = [len(groups) - sum(is_val), sum(is_val)]
    for i in order:
        size = len(groups[i].images)
        n_after = n_val - size if is_val[i] else n_val + size
        is_better = abs(n_after - n_wanted) < abs(n_val - n_wanted) or not n_groups[not is_val[i]]
        if is_better and n_groups[is_val[i]] > 1 and _can_leave(groups[i], counts[is_val[i]]):
            n_groups[is_val[i]] -= 1
            _move(i, groups, is_val, counts)
            n_groups[is_val[i]] += 1
            n_val = n_after
    for side in (False, True):  # one side is empty only if every group has the only object of a class
        if not n_groups[side]:
            _move(min(order, key=lambda i: len(groups[i].images)), groups, is_val, counts)
            return
