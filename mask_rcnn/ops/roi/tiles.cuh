// Gradients of maps, tile by tile: for kernels that send what pooled RoIs have back to the pixels.
//
// A block of THREADS owns a tile of one image's pixels, TILE_ROWS high.  It lists the RoIs that may touch the tile, in
// their order.  A thread owns one column of the tile, some channels, and adds up what the listed RoIs give to it, in
// their order: no sum depends on the order in which threads run, and the same bits come out in every run.
//
// Grid: images x tiles, groups of channels / (THREADS / columns of a tile).

const int THREADS = 256;
const int TILE_ROWS = 4;
const int ROIS_PER_PASS = 4 * THREADS;  // RoIs at once
const int MAX_HITS = 2 * ROIS_PER_PASS;

struct tile {
    int image, top, left, columns;
};

__device__ tile tile_of_block(int height, int width, int columns)
{
    const int tiles_x = (width + columns - 1) / columns, tiles_y = (height + TILE_ROWS - 1) / TILE_ROWS;
    const int tile_row = blockIdx.x / tiles_x;
    return {tile_row / tiles_y, tile_row % tiles_y * TILE_ROWS, (int)blockIdx.x % tiles_x * columns, columns};
}

// RoIs of which is known what pixels they read, from begin to end (R) along each axis.
struct roi_ranges {
    const int* roi_indices;
    const int* y_begin;
    const int* y_end;
    const int* x_begin;
    const int* x_end;
    int n;

    __device__ bool may_overlap(int r, const tile& in) const
    {
        return roi_indices[r] == in.image && y_begin[r] < in.top + TILE_ROWS && y_end[r] > in.top
            && x_begin[r] < in.left + in.columns && x_end[r] > in.left;
    }
};

// Lists RoIs from number "next" on, until all are looked at or the list may have no room for more; returns their
// number.  Every thread of the block looks at some of them; setting bits has the same result in any order.
template <typename regions>
__device__ int collect_overlapping_rois(const regions& from, const tile& in, int& next, int* hits)
{
    const int words = ROIS_PER_PASS / 64;
    __shared__ unsigned long long overlapping[words];
    int n = 0;
    for (; next < from.n && n <= MAX_HITS - ROIS_PER_PASS; next += ROIS_PER_PASS) {
        if (threadIdx.x < words)
            overlapping[threadIdx.x] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < ROIS_PER_PASS && next + i < from.n; i += THREADS)
            if (from.may_overlap(next + i, in))
                atomicOr(&overlapping[i / 64], 1ULL << i % 64);
        __syncthreads();
        const int bit = threadIdx.x % 64;
#pragma unroll 1  // for its registers a third block fits beside two
        for (int word = 0; word < words; ++word) {
            const unsigned long long bits = overlapping[word];
            if (word % (THREADS / 64) == threadIdx.x / 64 && (bits >> bit & 1))
                hits[n + __popcll(bits & ((1ULL << bit) - 1))] = next + 64 * word + bit;
            n += __popcll(bits);
        }
        __syncthreads();
    }
    return n;
}
