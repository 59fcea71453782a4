// Crop and resize, forward and backward; see mask_rcnn/ops/roi/crop_and_resize.py for the formula.
//
// Tables of one axis (R RoIs, P bins): first (R, P), the pixel at or before each point, or -1 outside of the map;
// fraction (R, P), the weight of the pixel after it.
//
// Feature maps, samples and their gradients have their channels last, (N, H, W, C) and (R, rows, columns, C), so that
// the threads of a warp read neighbours in memory.  A thread processes `lanes` channels at once: 4, if their number is
// a multiple of 4 and the memory is aligned to 4 elements, or 1.  "half" kernels read and write float16 as bits; their
// arithmetic is float32.

#ifndef REAL
#define REAL float
#endif

typedef REAL real;

#include "runtime/half.cuh"
#include "runtime/pack.cuh"
#include "roi/tiles.cuh"

struct points {
    const int* first;
    const float* fraction;
};

// Forward.  A block computes one row of samples of one RoI.
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

// Backward; see tiles.cuh.

// The weight of a pixel in a sample point; 0 if the point does not read the pixel.
__device__ float pixel_weight(int pixel, int first, float fraction)
{
    if (first < 0)
        return 0.0f;
    return pixel == first ? 1.0f - fraction : pixel == first + 1 ? fraction : 0.0f;
}

// Add the contribution of RoI r to the pixels (top, left) to (top + TILE_ROWS - 1, left).
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
            const int point = r * columns + column;
            const float weight = pixel_weight(left, horizontal.first[point], horizontal.fraction[point]);
            if (weight == 0.0f)
                continue;
            const pack<element, LANES> sample = gy[((long long)row * columns + column) * groups];
            for (int lane = 0; lane < LANES; ++lane)
                line[lane] += weight * load(sample.value[lane]);
        }
        for (int p = 0; p < TILE_ROWS; ++p) {
            const float weight = pixel_weight(top + p, first, vertical.fraction[row]);
            if (weight == 0.0f)  // a NaN must not reach pixels that the row does not read
                continue;
            for (int lane = 0; lane < LANES; ++lane)
                sum[p][lane] += weight * line[lane];
        }
    }
}

template <typename element, int LANES>
__device__ void backward(
    const element* gy, const roi_ranges& rois, points vertical, points horizontal, int channels, int height, int width,
    int rows, int columns, int tile_columns, element* gx)
{
    __shared__ int hits[MAX_HITS];
    const tile area = tile_of_block(height, width, tile_columns);
    const int groups = channels / LANES, groups_of_block = THREADS / tile_columns;
    const int left = area.left + threadIdx.x / groups_of_block;
    const int group = blockIdx.y * groups_of_block + threadIdx.x % groups_of_block;
    const bool has_pixels = group < groups && left < width;
    real sum[TILE_ROWS][LANES] = {};
    for (int next = 0; next < rois.n;) {
        const int n = collect_overlapping_rois(rois, area, next, hits);
        for (int i = 0; has_pixels && i < n; ++i)
            add_roi<element, LANES>((const pack<element, LANES>*)gy + group, hits[i], groups, vertical, horizontal,
                                    rows, columns, area.top, left, sum);
        __syncthreads();
    }
    for (int p = 0; has_pixels && p < TILE_ROWS && area.top + p < height; ++p) {
        const long long pixel = ((long long)area.image * height + area.top + p) * width + left;
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
    const roi_ranges rois = {roi_indices, y_begin, y_end, x_begin, x_end, n_rois};
    const points vertical = {y_first, y_fraction}, horizontal = {x_first, x_fraction};
    if (lanes == 4)
        backward<real, 4>(gy, rois, vertical, horizontal, channels, height, width, rows, columns, tile_columns, gx);
    else
        backward<real, 1>(gy, rois, vertical, horizontal, channels, height, width, rows, columns, tile_columns, gx);
}

extern "C" __global__ void crop_and_resize_backward_half(
    const unsigned short* gy, const int* roi_indices, const int* y_first, const float* y_fraction, const int* y_begin,
    const int* y_end, const int* x_first, const float* x_fraction, const int* x_begin, const int* x_end, int n_rois,
    int channels, int height, int width, int rows, int columns, int tile_columns, int lanes, unsigned short* gx)
{
    const roi_ranges rois = {roi_indices, y_begin, y_end, x_begin, x_end, n_rois};
    const points vertical = {y_first, y_fraction}, horizontal = {x_first, x_fraction};
    const half_bits* samples = (const half_bits*)gy;
    half_bits* out = (half_bits*)gx;
    if (lanes == 4)
        backward<half_bits, 4>(samples, rois, vertical, horizontal, channels, height, width, rows, columns,
                               tile_columns, out);
    else
        backward<half_bits, 1>(samples, rois, vertical, horizontal, channels, height, width, rows, columns,
                               tile_columns, out);
}
