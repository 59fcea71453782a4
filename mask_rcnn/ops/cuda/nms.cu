// Non-maximum suppression; see mask_rcnn/ops/nms.py.  Boxes are sorted by falling score.

typedef unsigned long long word;  // one bit for each of 64 boxes

struct alignas(16) box_of {  // one load
    float y_min, x_min, y_max, x_max;
};

// Bit j of overlaps[i][w] says whether box i, if kept, suppresses box 64 w + j (only boxes after i).
// A block of 64 threads fills one word of each of 64 rows; words left of the diagonal stay undefined.
extern "C" __global__ void nms_overlaps(
    const float* boxes, const int* groups, int n, float threshold, float extent, int inclusive,
    word* overlaps)
{
    const int i = blockIdx.y * 64 + threadIdx.x;
    const int first = blockIdx.x * 64;
    if (i >= n || blockIdx.x < blockIdx.y)
        return;
    const box_of box = ((const box_of*)boxes)[i];
    const float area = (box.y_max - box.y_min + extent) * (box.x_max - box.x_min + extent);
    const int group = groups[i];
    const int size = n - first < 64 ? n - first : 64;
    word bits = 0;
    for (int bit = i >= first ? i - first + 1 : 0; bit < size; ++bit) {
        const int j = first + bit;
        if (group != groups[j])
            continue;
        const box_of other = ((const box_of*)boxes)[j];  // the same for all threads: a broadcast
        const float height = fminf(box.y_max, other.y_max) - fmaxf(box.y_min, other.y_min) + extent;
        const float width = fminf(box.x_max, other.x_max) - fmaxf(box.x_min, other.x_min) + extent;
        const float overlap = fmaxf(height, 0.0f) * fmaxf(width, 0.0f);
        const float other_area = (other.y_max - other.y_min + extent) * (other.x_max - other.x_min + extent);
        const float iou = overlap / (area + other_area - overlap);
        if (iou > threshold || (inclusive && iou == threshold))
            bits |= (word)1 << bit;
    }
    overlaps[(long long)i * gridDim.x + blockIdx.x] = bits;
}

// One block walks over the boxes, 64 at a time: one thread decides which of them stay, then all threads mark
// what these suppress further down.  `suppressed` (one bit per box) is zero on entry.
extern "C" __global__ void nms_reduce(
    const word* overlaps, const int* order, int n, int limit, word* suppressed, int* kept)
{
    __shared__ word among_us[64];
    __shared__ word staying;
    const int words = (n + 63) / 64;
    const int me = threadIdx.x;
    int count = 0;  // the same in every thread
    for (int w = 0; w < words && count < limit; ++w) {
        const int first = w * 64;
        const int size = n - first < 64 ? n - first : 64;
        if (me < size)
            among_us[me] = overlaps[(long long)(first + me) * words + w];
        __syncthreads();
        if (me == 0) {
            word gone = suppressed[w];
            word stay = 0;
            for (int bit = 0; bit < size; ++bit)
                if (!(gone >> bit & 1)) {
                    stay |= (word)1 << bit;
                    gone |= among_us[bit];
                }
            staying = stay;
        }
        __syncthreads();
        const word stay = staying;
        if (me < size && (stay >> me & 1)) {
            const int position = count + __popcll(stay & (((word)1 << me) - 1));
            if (position < limit)
                kept[position] = order[first + me];
        }
        for (int other = me; other < words; other += blockDim.x) {
            if (other <= w)
                continue;
            word gone = suppressed[other];
            for (int bit = 0; bit < size; ++bit)
                if (stay >> bit & 1)
                    gone |= overlaps[(long long)(first + bit) * words + other];
            suppressed[other] = gone;
        }
        count += __popcll(stay);
        __syncthreads();  // suppressed, staying and among_us are read and written again
    }
}
