// Crop and resize, forward and backward; see mask_rcnn/ops/crop_and_resize.py for the formula.
//
// Tables of one axis (R RoIs, P bins): first (R, P), the pixel at or before each point, -1 outside of the map;
// fraction (R, P), the weight of the pixel behind it.
//
// Maps, samples and their gradients have their channels innermost, (N, H, W, C) and (R, rows, columns, C): the
// threads of a warp read neighbours in memory.  Each takes "lanes" channels at once: 4 (which needs a multiple of
// them, aligned to as many) or 1.  "half" kernels read and write the bits of float16, and calculate as the others do.

#ifndef REAL
#define REAL float
#endif

typedef REAL real;

struct half_bits { unsigned short bits; };

#ifdef __CUDACC__  // elsewhere whoever emulates CUDA brings these two
__device__ float half_to_float(unsigned short bits)
{
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ unsigned short float_to_half(float value)
{
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

__device__ real load(real stored) { return stored; }
__device__ real load(half_bits stored) { return half_to_float(stored.bits); }
__device__ void store(real value, real& place) { place = value; }
__device__ void store(real value, half_bits& place) { place.bits = float_to_half((float)value); }

template <typename element, int LANES>
struct alignas(LANES * sizeof(element) < 16 ? LANES * sizeof(element) : 16) pack {
    element value[LANES];
};

struct points {
    const int* first;
    const float* fraction;
};

// A block computes one row of samples of one RoI.
template <typename element, int LANES>
__device__ void forward(
    const element* x, const int* roi_indices, points vertical, points horizontal, int n_images, int channels,
    int height, int width, int rows, int columns, element* y)
{
    const int r = blockIdx.x / rows, image = roi_indices[r];
    const int groups = channels / LANES;
    const int top = vertical.first[blockIdx.x];
    const int bottom = top < height - 1 ? top + 1 : top;
    const float fy = vertical.fraction[blockIdx.x];
    for (int item = threadIdx.x; item < columns * groups; item += blockDim.x) {
        const int column = r * columns + item / groups, group = item % groups;
        const int left = horizontal.first[column];
        const int right = left < width - 1 ? left + 1 : left;
        const float fx = horizontal.fraction[column];
        pack<element, LANES> sample = {};
        if (image >= 0 && image < n_images && top >= 0 && left >= 0) {
            const pack<element, LANES>* map = (const pack<element, LANES>*)x
                + (long long)image * height * width * groups + group;
            const pack<element, LANES> top_left = map[(long long)(top * width + left) * groups];
            const pack<element, LANES> top_right = map[(long long)(top * width + right) * groups];
            const pack<element, LANES> bottom_left = map[(long long)(bottom * width + left) * groups];
            const pack<element, LANES> bottom_right = map[(long long)(bottom * width + right) * groups];
            for (int lane = 0; lane < LANES; ++lane) {
                const real upper = load(top_left.value[lane])
                    + (load(top_right.value[lane]) - load(top_left.value[lane])) * fx;
                const real lower = load(bottom_left.value[lane])
                    + (load(bottom_right.value[lane]) - load(bottom_left.value[lane])) * fx;
                store(upper + (lower - upper) * fy, sample.value[lane]);
            }
        }
        ((pack<element, LANES>*)y)[(long long)blockIdx.x * columns * groups + item] = sample;
    }
}

extern "C" __global__ void crop_and_resize_forward(
    const real* x, const int* roi_indices, const int* y_first, const float* y_fraction, const int* x_first,
    const float* x_fraction, int n_images, int channels, int height, int width, int rows, int columns, int lanes,
    real* y)
{
    const points vertical = {y_first, y_fraction}, horizontal = {x_first, x_fraction};
    if (lanes == 4)
        forward<real, 4>(x, roi_indices, vertical, horizontal, n_images, channels, height, width, rows, columns, y);
    else
        forward<real, 1>(x, roi_indices, vertical, horizontal, n_images, channels, height, width, rows, columns, y);
}

extern "C" __global__ void crop_and_resize_forward_half(
    const unsigned short* x, const int* roi_indices, const int* y_first, const float* y_fraction, const int* x_first,
    const float* x_fraction, int n_images, int channels, int height, int width, int rows, int columns, int lanes,
    unsigned short* y)
{
    const points vertical = {y_first, y_fraction}, horizontal = {x_first, x_fraction};
    const half_bits* map = (const half_bits*)x;
    half_bits* out = (half_bits*)y;
    if (lanes == 4)
        forward<half_bits, 4>(map, roi_indices, vertical, horizontal, n_images, channels, height, width, rows, columns,
                              out);
    else
        forward<half_bits, 1>(map, roi_indices, vertical, horizontal, n_images, channels, height, width, rows, columns,
                              out);
}

// Backward.  A block owns a tile of one image's pixels, TILE_ROWS high: it lists the RoIs that touch the tile, in
// their order.  A thread owns one column of the tile, LANES channels, and adds up what the listed RoIs give to it, in
// their order: no sum depends on the order in which threads run, and the same bits come out in every run.

const int THREADS = 256;
const int TILE_ROWS = 4;
const int LOOKED_AT = 4 * THREADS;  // RoIs at once
const int MOST_LISTED = 2 * LOOKED_AT;

struct tile {
    int image, top, left, columns;
};

// Pixels that a RoI reads, from begin to end (R) along each axis.
struct regions {
    const int* roi_indices;
    const int* y_begin;
    const int* y_end;
    const int* x_begin;
    const int* x_end;
    int n;

    __device__ bool touch(int r, const tile& in) const
    {
        return roi_indices[r] == in.image && y_begin[r] < in.top + TILE_ROWS && y_end[r] > in.top
            && x_begin[r] < in.left + in.columns && x_end[r] > in.left;
    }
};

// Lists RoIs from number "next" on, until all are looked at or the list may have no room for more; returns their
// number.  Every thread of the block looks at some of them; setting bits has the same result in any order.
__device__ int list_rois(const regions& from, const tile& in, int& next, int* listed)
{
    const int words = LOOKED_AT / 64;
    __shared__ unsigned long long touching[words];
    int n = 0;
    for (; next < from.n && n <= MOST_LISTED - LOOKED_AT; next += LOOKED_AT) {
        if (threadIdx.x < words)
            touching[threadIdx.x] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < LOOKED_AT && next + i < from.n; i += THREADS)
            if (from.touch(next + i, in))
                atomicOr(&touching[i / 64], 1ULL << i % 64);
        __syncthreads();
        const int bit = threadIdx.x % 64;
        for (int word = 0; word < words; ++word) {
            const unsigned long long bits = touching[word];
            if (word % (THREADS / 64) == threadIdx.x / 64 && (bits >> bit & 1))
                listed[n + __popcll(bits & ((1ULL << bit) - 1))] = next + 64 * word + bit;
            n += __popcll(bits);
        }
        __syncthreads();
    }
    return n;
}

// The weight of a pixel in a point; 0 if the point does not read it.
__device__ float weight_of(int pixel, int first, float fraction)
{
    if (first < 0)
        return 0.0f;
    return pixel == first ? 1.0f - fraction : pixel == first + 1 ? fraction : 0.0f;
}

// Adds what RoI r gives to the pixels (top, left) to (top + TILE_ROWS - 1, left).
template <typename element, int LANES>
__device__ void add_roi(
    const pack<element, LANES>* gy, int r, int groups, points vertical, points horizontal, int rows, int columns,
    int top, int left, real (&sum)[TILE_ROWS][LANES])
{
    for (int row = r * rows; row < (r + 1) * rows; ++row) {
        const int first = vertical.first[row];
        if (first < 0 || first + 1 < top || first >= top + TILE_ROWS)
            continue;
        real line[LANES] = {};
        for (int column = 0; column < columns; ++column) {
            const int at = r * columns + column;
            const float weight = weight_of(left, horizontal.first[at], horizontal.fraction[at]);
            if (weight == 0.0f)
                continue;
            const pack<element, LANES> sample = gy[((long long)row * columns + column) * groups];
            for (int lane = 0; lane < LANES; ++lane)
                line[lane] += weight * load(sample.value[lane]);
        }
        for (int p = 0; p < TILE_ROWS; ++p) {
            const float weight = weight_of(top + p, first, vertical.fraction[row]);
            if (weight == 0.0f)  // what the row does not read must not become NaN
                continue;
            for (int lane = 0; lane < LANES; ++lane)
                sum[p][lane] += weight * line[lane];
        }
    }
}

// Grid: images x tiles, groups of channels / (THREADS / tile_columns).
template <typename element, int LANES>
__device__ void backward(
    const element* gy, const regions& from, points vertical, points horizontal, int channels, int height, int width,
    int rows, int columns, int tile_columns, element* gx)
{
    __shared__ int listed[MOST_LISTED];
    const int tiles_x = (width + tile_columns - 1) / tile_columns, tiles_y = (height + TILE_ROWS - 1) / TILE_ROWS;
    const int tile_row = blockIdx.x / tiles_x;
    const tile mine = {tile_row / tiles_y, tile_row % tiles_y * TILE_ROWS, (int)blockIdx.x % tiles_x * tile_columns,
                       tile_columns};
    const int groups = channels / LANES, groups_of_block = THREADS / tile_columns;
    const int left = mine.left + threadIdx.x / groups_of_block;
    const int group = blockIdx.y * groups_of_block + threadIdx.x % groups_of_block;
    const bool has_pixels = group < groups && left < width;
    real sum[TILE_ROWS][LANES] = {};
    for (int next = 0; next < from.n;) {
        const int n = list_rois(from, mine, next, listed);
        for (int i = 0; has_pixels && i < n; ++i)
            add_roi<element, LANES>((const pack<element, LANES>*)gy + group, listed[i], groups, vertical, horizontal,
                                    rows, columns, mine.top, left, sum);
        __syncthreads();
    }
    for (int p = 0; has_pixels && p < TILE_ROWS && mine.top + p < height; ++p) {
        const long long pixel = ((long long)mine.image * height + mine.top + p) * width + left;
        pack<element, LANES> gradient;
        for (int lane = 0; lane < LANES; ++lane)
            store(sum[p][lane], gradient.value[lane]);
        ((pack<element, LANES>*)gx)[pixel * groups + group] = gradient;
    }
}

extern "C" __global__ void crop_and_resize_backward(
    const real* gy, const int* roi_indices, const int* y_first, const float* y_fraction, const int* y_begin,
    const int* y_end, const int* x_first, const float* x_fraction, const int* x_begin, const int* x_end, int n_rois,
    int channels, int height, int width, int rows, int columns, int tile_columns, int lanes, real* gx)
{
    const regions from = {roi_indices, y_begin, y_end, x_begin, x_end, n_rois};
    const points vertical = {y_first, y_fraction}, horizontal = {x_first, x_fraction};
    if (lanes == 4)
        backward<real, 4>(gy, from, vertical, horizontal, channels, height, width, rows, columns, tile_columns, gx);
    else
        backward<real, 1>(gy, from, vertical, horizontal, channels, height, width, rows, columns, tile_columns, gx);
}

extern "C" __global__ void crop_and_resize_backward_half(
    const unsigned short* gy, const int* roi_indices, const int* y_first, const float* y_fraction, const int* y_begin,
    const int* y_end, const int* x_first, const float* x_fraction, const int* x_begin, const int* x_end, int n_rois,
    int channels, int height, int width, int rows, int columns, int tile_columns, int lanes, unsigned short* gx)
{
    const regions from = {roi_indices, y_begin, y_end, x_begin, x_end, n_rois};
    const points vertical = {y_first, y_fraction}, horizontal = {x_first, x_fraction};
    const half_bits* samples = (const half_bits*)gy;
    half_bits* out = (half_bits*)gx;
    if (lanes == 4)
        backward<half_bits, 4>(samples, from, vertical, horizontal, channels, height, width, rows, columns,
                               tile_columns, out);
    else
        backward<half_bits, 1>(samples, from, vertical, horizontal, channels, height, width, rows, columns,
                               tile_columns, out);
}
