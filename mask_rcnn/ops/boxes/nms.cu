// Non-maximum suppression; see mask_rcnn/ops/boxes/nms.py.
//
// `order` lists the boxes in descending order of score, and box i is the i-th of this list.  Boxes with a score of minus
// infinity or NaN are padding and come last.

typedef unsigned long long word;  // one bit for each of 64 boxes

struct alignas(16) box_corners {  // one load
    float y_min, x_min, y_max, x_max;
};

__device__ bool is_padding(float score)
{
    return !(score >= -3.4028235e38f);  // below the lowest finite float, or NaN
}

__device__ float area_of(const box_corners& box, float offset)
{
    return (box.y_max - box.y_min + offset) * (box.x_max - box.x_min + offset);
}

// Shift the boxes of group g by (first_group + g) * (largest coordinate + 1) if at most max_boxes are not padding.
//
// One block of 256 threads: each counts its boxes, and the block adds up the counts.
extern "C" __global__ void shift_groups(
    const float* boxes, const float* scores, const int* groups, int n, int max_boxes, int first_group, float* shifted)
{
    __shared__ int counts[256];
    __shared__ float largest[256];
    const int thread = threadIdx.x;
    int count = 0;
    float maximum = -1.f / 0.f;
    for (int i = thread; i < n; i += 256) {
        if (is_padding(scores[i]))
            continue;
        const box_corners box = ((const box_corners*)boxes)[i];
        maximum = fmaxf(maximum, fmaxf(fmaxf(box.y_min, box.x_min), fmaxf(box.y_max, box.x_max)));
        ++count;
    }
    counts[thread] = count;
    largest[thread] = maximum;
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (thread < half) {
            counts[thread] += counts[thread + half];
            largest[thread] = fmaxf(largest[thread], largest[thread + half]);
        }
        __syncthreads();
    }
    const bool is_shifted = counts[0] > 0 && counts[0] <= max_boxes;
    const float distance = largest[0] + 1.f;
    for (int i = thread; i < n; i += 256) {
        box_corners box = ((const box_corners*)boxes)[i];
        if (is_shifted) {
            const float shift = (float)(groups[i] + first_group) * distance;
            box.y_min += shift;
            box.x_min += shift;
            box.y_max += shift;
            box.x_max += shift;
        }
        ((box_corners*)shifted)[i] = box;
    }
}

// Set bit j of overlaps[i][w] if box i, when kept, suppresses box 64 w + j.
//
// A box suppresses only boxes after it; a padding box suppresses itself.  A block of 64 threads computes one word of 64
// rows.  These words stay undefined: those left of the diagonal, those of padding rows outside the diagonal, and those
// whose columns are all padding.
extern "C" __global__ void nms_overlaps(
    const float* boxes, const float* scores, const int* groups, int has_groups, const int* order, int n,
    float threshold, float offset, int suppress_equal, word* overlaps)
{
    __shared__ box_corners column_boxes[64];
    __shared__ float column_areas[64];
    __shared__ int column_groups[64];
    const int thread = threadIdx.x;
    const int i = blockIdx.y * 64 + thread, first = blockIdx.x * 64;
    const bool on_diagonal = blockIdx.x == blockIdx.y;
    if (blockIdx.x < blockIdx.y || (!on_diagonal && is_padding(scores[order[first]])))
        return;
    if (first + thread < n) {
        const int column = order[first + thread];
        const box_corners box = ((const box_corners*)boxes)[column];
        column_boxes[thread] = box;
        column_areas[thread] = area_of(box, offset);
        column_groups[thread] = has_groups ? groups[column] : 0;
    }
    __syncthreads();
    if (i >= n)
        return;
    word bits = 0;
    if (is_padding(scores[order[i]])) {
        if (!on_diagonal)
            return;
        bits = (word)1 << thread;
    } else {
        const box_corners box = ((const box_corners*)boxes)[order[i]];
        const float area = area_of(box, offset);
        const int group = has_groups ? groups[order[i]] : 0;
        const int n_columns = n - first < 64 ? n - first : 64;
        for (int j = on_diagonal ? thread + 1 : 0; j < n_columns; ++j) {
            if (group != column_groups[j])
                continue;
            const box_corners other = column_boxes[j];
            const float height = fminf(box.y_max, other.y_max) - fmaxf(box.y_min, other.y_min) + offset;
            const float width = fminf(box.x_max, other.x_max) - fmaxf(box.x_min, other.x_min) + offset;
            const float overlap = fmaxf(height, 0.0f) * fmaxf(width, 0.0f);
            const float iou = overlap / (area + column_areas[j] - overlap);
            if (iou > threshold || (suppress_equal && iou == threshold))
                bits |= (word)1 << j;
        }
    }
    overlaps[(long long)i * gridDim.x + blockIdx.x] = bits;
}

// List the kept boxes; `kept` has `limit` elements, and those without a box are -1.
//
// One block of 256 threads processes 64 boxes at a time: one thread decides which of them are kept, then all threads
// mark the later boxes that these suppress.  `overlaps` has 64 rows for every word.
extern "C" __global__ void nms_reduce(const word* overlaps, const int* order, int n, int limit, int* kept)
{
    __shared__ word suppressed[4096];  // _MAX_BOXES of nms.py
    __shared__ word diagonal[64];
    __shared__ word shared_kept_bits;
    const int n_words = (n + 63) / 64;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    for (int w = thread; w < n_words; w += 256)
        suppressed[w] = 0;
    int count = 0;  // the same in every thread
    for (int w = 0; w < n_words && count < limit; ++w) {
        const int first = w * 64;
        const int size = n - first < 64 ? n - first : 64;
        if (thread < 64)  // past the last box: padding
            diagonal[thread] = thread < size ? overlaps[(long long)(first + thread) * n_words + w] : (word)1 << thread;
        __syncthreads();
        if (thread == 0) {
            word bits = suppressed[w];
            #pragma unroll
            for (int i = 0; i < 64; ++i)
                if (!(bits >> i & 1))
                    bits |= diagonal[i];
            shared_kept_bits = ~bits;
        }
        __syncthreads();
        const word kept_bits = shared_kept_bits;
        if (thread < 64 && (kept_bits >> thread & 1)) {
            const int position = count + __popcll(kept_bits & (((word)1 << thread) - 1));
            if (position < limit)
                kept[position] = order[first + thread];
        }
        count += __popcll(kept_bits);
        if (diagonal[63] >> 63)  // all later boxes are padding
            break;
        // A warp loads 8 rows whether they are kept or not, so that it waits for memory once.
        for (int column = w + 1 + lane; column < n_words; column += 32) {
            const word* row = overlaps + (long long)(first + 8 * warp) * n_words + column;
            word bits = 0;
            #pragma unroll
            for (int i = 0; i < 8; ++i)
                bits |= row[(long long)i * n_words] & (word)0 - (kept_bits >> (8 * warp + i) & 1);
            if (bits != 0)
                atomicOr(&suppressed[column], bits);
        }
        __syncthreads();  // the next iteration reads and overwrites the shared arrays
    }
    for (int position = count + thread; position < limit; position += 256)
        kept[position] = -1;
}
