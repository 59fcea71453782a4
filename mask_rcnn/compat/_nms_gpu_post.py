"""ChainerCV's ``_nms_gpu_post`` without its C extension."""

import numpy as np


def _nms_gpu_post(mask, n_bbox, threads_per_block, col_blocks):
    """Select boxes from the bit mask of ChainerCV's NMS kernel.

    Args:
        mask (numpy.ndarray): ``(n_bbox * col_blocks,)`` uint64; bit ``j`` of word ``k`` of row ``i`` is set
            if box ``i`` suppresses box ``k * threads_per_block + j``.
        n_bbox (int): Number of boxes, in descending order of score.
        threads_per_block (int): Number of bits used in each word.
        col_blocks (int): Number of words per box.

    Returns:
        tuple: ``(n_bbox,)`` int32 indices of the kept boxes, and their number ``n``; only the first ``n`` are valid.
    """
    rows = np.asarray(mask, np.uint64).reshape(n_bbox, col_blocks)
    removed = np.zeros(col_blocks, np.uint64)
    selection = np.zeros(n_bbox, np.int32)
    count = 0
    for i in range(n_bbox):
        word, bit = divmod(i, threads_per_block)
        if not (int(removed[word]) >> bit) & 1:
            selection[count] = i
            count += 1
            removed |= rows[i]
    return selection, count
