// Decoding and selection of boxes with static shapes; see mask_rcnn/ops/boxes/padded_selection.py.
//
// The operations and their order are those of mask_rcnn/ops/boxes/boxes.py, so that the results have the same bits.

typedef float real;

#include "runtime/half.cuh"
#include "runtime/pack.cuh"

#define PAD_SCORE (-1.f / 0.f)
#define PAD_COORDINATE (0.f / 0.f)

typedef pack<float, 4> box;  // y_min, x_min, y_max, x_max

// NaN stays NaN.
__device__ float clip(float value, float low, float high)
{
    return value < low ? low : value > high ? high : value;
}

// Decode one axis, 0 or 1, of deltas (dy, dx, dh, dw) and clip it.
template <typename element>
__device__ void decode_axis(
    const box& source, const element* deltas, int axis, float shift_weight, float scale_weight, float offset,
    float max_log_scale, float low, float high, box& decoded)
{
    const float side = source.value[axis + 2] - source.value[axis] + offset;
    const float centre = source.value[axis] + 0.5f * side;
    const float log_scale = load(deltas[axis + 2]) / scale_weight;
    const float half_side = expf(log_scale > max_log_scale ? max_log_scale : log_scale) * side * 0.5f;
    const float new_centre = load(deltas[axis]) / shift_weight * side + centre;
    decoded.value[axis] = clip(new_centre - half_side, low, high);
    decoded.value[axis + 2] = clip(new_centre + half_side - offset, low, high);
}

__device__ bool is_valid(
    const box& proposal, int axis, float min_size, float size, float scale, int centre_inside, float offset)
{
    const float side = proposal.value[axis + 2] - proposal.value[axis];
    return side / scale + offset >= min_size
        && (!centre_inside || proposal.value[axis] + (side + offset) / 2.f < size);
}

template <typename element>
__device__ void decode_proposal(
    const float* scores, const float* anchors, const element* deltas, const int* best, int n, int level,
    float weight_y, float weight_x, float weight_h, float weight_w, float offset, float max_log_scale, float high_y,
    float high_x, float height, float width, float scale, float min_size, int centre_inside, float* boxes,
    float* valid_scores, int* levels)
{
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n)
        return;
    const int index = best[row];
    const box anchor = ((const box*)anchors)[index];
    deltas += (long long)index * 4;
    box proposal;
    decode_axis(anchor, deltas, 0, weight_y, weight_h, offset, max_log_scale, 0.f, high_y, proposal);
    decode_axis(anchor, deltas, 1, weight_x, weight_w, offset, max_log_scale, 0.f, high_x, proposal);
    const bool valid = is_valid(proposal, 0, min_size, height, scale, centre_inside, offset)
        && is_valid(proposal, 1, min_size, width, scale, centre_inside, offset);
    const float score = scores[index];
    ((box*)boxes)[row] = proposal;
    valid_scores[row] = valid && score == score ? score : PAD_SCORE;
    levels[row] = level;
}

// Row i is the proposal of anchor best[i]; the score of an invalid one, and one that is NaN, is that of padding.
extern "C" __global__ void decode_proposals(
    const float* scores, const float* anchors, const float* deltas, const int* best, int n, int level, float weight_y,
    float weight_x, float weight_h, float weight_w, float offset, float max_log_scale, float high_y, float high_x,
    float height, float width, float scale, float min_size, int centre_inside, float* boxes, float* valid_scores,
    int* levels)
{
    decode_proposal(
        scores, anchors, deltas, best, n, level, weight_y, weight_x, weight_h, weight_w, offset, max_log_scale, high_y,
        high_x, height, width, scale, min_size, centre_inside, boxes, valid_scores, levels);
}

extern "C" __global__ void decode_proposals_half(
    const float* scores, const float* anchors, const unsigned short* deltas, const int* best, int n, int level,
    float weight_y, float weight_x, float weight_h, float weight_w, float offset, float max_log_scale, float high_y,
    float high_x, float height, float width, float scale, float min_size, int centre_inside, float* boxes,
    float* valid_scores, int* levels)
{
    decode_proposal(
        scores, anchors, (const half_bits*)deltas, best, n, level, weight_y, weight_x, weight_h, weight_w, offset,
        max_log_scale, high_y, high_x, height, width, scale, min_size, centre_inside, boxes, valid_scores, levels);
}

template <typename element>
__device__ void compute_sigmoid(const element* x, int n, float* y)
{
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < n)
        y[index] = (float)(tanh(load(x[index]) * 0.5) * 0.5 + 0.5);  // in double precision, as Chainer on a GPU
}

extern "C" __global__ void sigmoid(const float* x, int n, float* y)
{
    compute_sigmoid(x, n, y);
}

extern "C" __global__ void sigmoid_half(const unsigned short* x, int n, float* y)
{
    compute_sigmoid((const half_bits*)x, n, y);
}

// One thread per row of logits (n_rows, n_classes).
extern "C" __global__ void softmax(const float* logits, int n_rows, int n_classes, float* probs)
{
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n_rows)
        return;
    logits += (long long)row * n_classes;
    probs += (long long)row * n_classes;
    float largest = logits[0], sum = 0.f;
    for (int k = 1; k < n_classes; ++k)
        largest = logits[k] > largest ? logits[k] : largest;
    for (int k = 0; k < n_classes; ++k) {
        probs[k] = expf(logits[k] - largest);
        sum += probs[k];
    }
    for (int k = 0; k < n_classes; ++k)
        probs[k] /= sum;
}

// The scores of all foreground classes, class after class; that of padding for those that are not candidates.
extern "C" __global__ void candidate_scores(
    const float* rois, const float* probs, int n_rois, int n_classes, float threshold, int is_inclusive,
    int best_class_only, float* scores)
{
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= n_rois * (n_classes - 1))
        return;
    const int roi = index % n_rois, label = index / n_rois + 1;
    const bool is_padding = rois[4 * roi] != rois[4 * roi];
    probs += (long long)roi * n_classes;
    const float score = is_padding ? 0.f : probs[label];
    bool is_candidate = score > threshold || (is_inclusive && score == threshold);
    if (best_class_only)  // the first of equal probabilities
        for (int k = 0; k < n_classes; ++k)
            is_candidate = is_candidate && !is_padding && !(k < label ? probs[k] >= score : probs[k] > score);
    scores[index] = is_candidate ? score : PAD_SCORE;
}

// Row i is the detection of the candidate best[i], an index of candidate_scores; its score is that of padding if a
// coordinate is NaN or a side is below min_size.
extern "C" __global__ void decode_detections(
    const float* rois, const float* deltas, const float* scores, const int* best, int n, int n_rois, int n_classes,
    float shift_y, float shift_x, float factor_y, float factor_x, float weight_y, float weight_x, float weight_h,
    float weight_w, float offset, float max_log_scale, float low_y, float low_x, float high_y, float high_x,
    float min_size, float* boxes, float* best_scores, int* labels)
{
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n)
        return;
    const int index = best[row], roi = index % n_rois, label = index / n_rois;
    box source = ((const box*)rois)[roi], detection;
    for (int corner = 0; corner < 4; corner += 2) {
        source.value[corner] = (source.value[corner] - shift_y) / factor_y;
        source.value[corner + 1] = (source.value[corner + 1] - shift_x) / factor_x;
    }
    deltas += ((long long)roi * n_classes + label + 1) * 4;
    decode_axis(source, deltas, 0, weight_y, weight_h, offset, max_log_scale, low_y, high_y, detection);
    decode_axis(source, deltas, 1, weight_x, weight_w, offset, max_log_scale, low_x, high_x, detection);
    bool has_box = true;
    for (int corner = 0; corner < 4; ++corner)
        has_box = has_box && detection.value[corner] == detection.value[corner];
    for (int axis = 0; axis < 2; ++axis)
        has_box = has_box && detection.value[axis + 2] - detection.value[axis] >= min_size;
    ((box*)boxes)[row] = detection;
    best_scores[row] = has_box ? scores[index] : PAD_SCORE;
    labels[row] = label;
}

__device__ float score_of(const float* scores, int index)
{
    return index < 0 ? PAD_SCORE : scores[index];
}

// Rows keep[i]; padding where keep[i] is -1, where the score is that of padding, and where it is below that of row
// `last`, the last within a limit, unless `last` is -1.
extern "C" __global__ void take_kept(
    const int* keep, int n, int last, const float* boxes, const float* scores, const int* labels, float* kept_boxes,
    float* kept_scores, int* kept_labels)
{
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n)
        return;
    const int index = keep[row];
    float score = score_of(scores, index);
    if (last >= 0 && score < score_of(scores, keep[last]))
        score = PAD_SCORE;
    const bool is_padding = score == PAD_SCORE;
    box kept;
    if (is_padding)
        kept.value[0] = kept.value[1] = kept.value[2] = kept.value[3] = PAD_COORDINATE;
    else
        kept = ((const box*)boxes)[index];
    ((box*)kept_boxes)[row] = kept;
    kept_scores[row] = score;
    kept_labels[row] = is_padding ? 0 : labels[index];
}
