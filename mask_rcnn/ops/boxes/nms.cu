// Non-maximum suppression; see mask_rcnn/ops/nms.py.  `order` lists the boxes by falling score: box i, below, is
// the i-th of it.  Those of score minus infinity are the last, and nothing.

typedef unsigned long long word;  // one bit for each of 64 boxes

struct alignas(16) box_of {  // one load
    float y_min, x_min, y_max, x_max;
};

__device__ bool is_nothing(float score)
{
    return score < -3.4028235e38f;  // less than the least finite number
}

// Bit j of overlaps[i][w] says whether box i, if kept, suppresses box 64 w + j: one after i, or itself if it is
// nothing.  A block of 64 threads fills one word of each of 64 rows.  Words left of the diagonal, rows of nothing
// but for the diagonal, and columns of nothing stay undefined.
extern "C" __global__ void nms_overlaps(
    const float* boxes, const float* scores, const int* groups, int has_groups, const int* order, int n,
    float threshold, float offset, int suppress_equal, word* overlaps)
{
    __shared__ box_of others[64];
    __shared__ float other_areas[64];
    __shared__ int other_groups[64];
    const int me = threadIdx.x;
    const int i = blockIdx.y * 64 + me, first = blockIdx.x * 64;
    const bool on_diagonal = blockIdx.x == blockIdx.y;
    if (blockIdx.x < blockIdx.y || (!on_diagonal && is_nothing(scores[order[first]])))
        return;
    if (first + me < n) {
        const int other = order[first + me];
        const box_of box = ((const box_of*)boxes)[other];
        others[me] = box;
        other_areas[me] = (box.y_max - box.y_min + offset) * (box.x_max - box.x_min + offset);
        other_groups[me] = has_groups ? groups[other] : 0;
    }
    __syncthreads();
    if (i >= n)
        return;
    word bits = 0;
    if (is_nothing(scores[order[i]])) {
        if (!on_diagonal)
            return;
        bits = (word)1 << me;
    } else {
        const box_of box = ((const box_of*)boxes)[order[i]];
        const float area = (box.y_max - box.y_min + offset) * (box.x_max - box.x_min + offset);
        const int group = has_groups ? groups[order[i]] : 0;
        const int size = n - first < 64 ? n - first : 64;
        for (int j = on_diagonal ? me + 1 : 0; j < size; ++j) {
            if (group != other_groups[j])
                continue;
            const box_of other = others[j];
            const float height = fminf(box.y_max, other.y_max) - fmaxf(box.y_min, other.y_min) + offset;
            const float width = fminf(box.x_max, other.x_max) - fmaxf(box.x_min, other.x_min) + offset;
            const float overlap = fmaxf(height, 0.0f) * fmaxf(width, 0.0f);
            const float iou = overlap / (area + other_areas[j] - overlap);
            if (iou > threshold || (suppress_equal && iou == threshold))
                bits |= (word)1 << j;
        }
    }
    overlaps[(long long)i * gridDim.x + blockIdx.x] = bits;
}

// One block of 256 threads walks over the boxes, 64 at a time: one thread decides which of them stay, then all
// threads mark what these suppress further down.  `overlaps` has 64 rows for every word; `kept` has `limit` places,
// the last ones -1.
extern "C" __global__ void nms_reduce(const word* overlaps, const int* order, int n, int limit, int* kept)
{
    __shared__ word gone[4096];  // _MAX_BOXES of nms.py
    __shared__ word among_us[64];
    __shared__ word staying;
    const int words = (n + 63) / 64;
    const int me = threadIdx.x, lane = me % 32, part = me / 32;
    for (int w = me; w < words; w += 256)
        gone[w] = 0;
    int count = 0;  // the same in every thread
    for (int w = 0; w < words && count < limit; ++w) {
        const int first = w * 64;
        const int size = n - first < 64 ? n - first : 64;
        if (me < 64)  // behind the last box: nothing
            among_us[me] = me < size ? overlaps[(long long)(first + me) * words + w] : (word)1 << me;
        __syncthreads();
        if (me == 0) {
            word out = gone[w];
            #pragma unroll
            for (int bit = 0; bit < 64; ++bit)
                if (!(out >> bit & 1))
                    out |= among_us[bit];
            staying = ~out;
        }
        __syncthreads();
        const word stay = staying;
        if (me < 64 && (stay >> me & 1)) {
            const int position = count + __popcll(stay & (((word)1 << me) - 1));
            if (position < limit)
                kept[position] = order[first + me];
        }
        count += __popcll(stay);
        if (among_us[63] >> 63)  // all that follow are nothing
            break;
        // A warp takes 8 rows and loads them whether they stay or not, so that it waits for them once.
        for (int other = w + 1 + lane; other < words; other += 32) {
            const word* row = overlaps + (long long)(first + 8 * part) * words + other;
            word bits = 0;
            #pragma unroll
            for (int i = 0; i < 8; ++i)
                bits |= row[(long long)i * words] & (word)0 - (stay >> (8 * part + i) & 1);
            if (bits != 0)
                atomicOr(&gone[other], bits);
        }
        __syncthreads();  // gone, staying and among_us are read and written again
    }
    for (int place = count + me; place < limit; place += 256)
        kept[place] = -1;
}
