// Tiles of feature maps for the backward kernels of RoI pooling.
//
// A block of THREADS threads computes the gradient of one tile of one image, TILE_ROWS high.  It collects the RoIs that
// may overlap the tile in ascending order.  A thread computes one column of the tile in some of the channels and adds
// up the contributions of the collected RoIs in their order.  No sum depends on the order in which threads run, so the
// result has the same bits in every run.
//
// Grid: images x tiles, groups of channels / (THREADS / columns of a tile).  See tiles.py.

const int THREADS = 256;
const int TILE_ROWS = 4;
const int ROIS_PER_PASS = 4 * THREADS;
const int MAX_HITS = 2 * ROIS_PER_PASS;  // capacity of the list of overlapping RoIs

struct tile {
    int image, top, left, columns;
};

__device__ tile tile_of_block(int height, int width, int columns)
{
    const int tiles_x = (width + columns - 1) / columns, tiles_y = (height + TILE_ROWS - 1) / TILE_ROWS;
    const int tile_row = blockIdx.x / tiles_x;
    return {tile_row / tiles_y, tile_row % tiles_y * TILE_ROWS, (int)blockIdx.x % tiles_x * columns, columns};
}

// RoIs and the ranges of pixels that they read along each axis, from begin to end (R).
struct roi_ranges {
    const int* roi_indices;
    const int* y_begin;
    const int* y_end;
    const int* x_begin;
    const int* x_end;
    int n;

    __device__ bool may_overlap(int r, const tile& area) const
    {
        return roi_indices[r] == area.image && y_begin[r] < area.top + TILE_ROWS && y_end[r] > area.top
            && x_begin[r] < area.left + area.columns && x_end[r] > area.left;
    }
};

// Collect the RoIs that may overlap a tile, starting with RoI `next`, until all RoIs are tested or the list may be
// full.  Return the number of hits and advance `next`.  Each thread of the block tests some of the RoIs and sets their
// bits, which has the same result in any order.
template <typename roi_list>
__device__ int collect_overlapping_rois(const roi_list& rois, const tile& area, int& next, int* hits)
{
    const int words = ROIS_PER_PASS / 64;
    __shared__ unsigned long long overlapping[words];
    int n = 0;
    for (; next < rois.n && n <= MAX_HITS - ROIS_PER_PASS; next += ROIS_PER_PASS) {
        if (threadIdx.x < words)
            overlapping[threadIdx.x] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < ROIS_PER_PASS && next + i < rois.n; i += THREADS)
            if (rois.may_overlap(next + i, area))
                atomicOr(&overlapping[i / 64], 1ULL << i % 64);
        __syncthreads();
        const int bit = threadIdx.x % 64;
#pragma unroll 1  // saves registers, so that three blocks fit on a multiprocessor instead of two
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
