// RoI max pooling, forward and backward; see mask_rcnn/ops/roi/roi_max_pooling.py.
//
// Tables of one axis (R RoIs, P bins): first (R, P) and count (R, P), the pixels of every bin, clipped to the map.
//
// Feature maps, maxima, their indices and their gradients have their channels last, (N, H, W, C) and
// (R, rows, columns, C), so that the threads of a warp read neighbours in memory.  A thread processes `lanes` channels
// at once: 4, if their number is a multiple of 4 and the memory is aligned to 4 elements, or 1.

#ifndef REAL
#define REAL float
#endif

typedef REAL real;

#include "runtime/pack.cuh"
#include "roi/tiles.cuh"

struct bins {
    const int* first;
    const int* count;

    __device__ bool contains(int bin, int pixel) const
    {
        return pixel >= first[bin] && pixel < first[bin] + count[bin];
    }
};

// Forward.  A block computes one row of bins of one RoI.
template <int LANES>
__device__ void forward(
    const real* x, const int* roi_indices, bins vertical, bins horizontal, int n_images, int channels, int height,
    int width, int rows, int columns, real* y, int* argmax)
{
    const int r = blockIdx.x / rows, image = roi_indices[r];
    const int groups = channels / LANES;
    const int top = vertical.first[blockIdx.x], bottom = top + vertical.count[blockIdx.x];
    for (int item = threadIdx.x; item < columns * groups; item += blockDim.x) {
        const int column = r * columns + item / groups, group = item % groups;
        const int left = horizontal.first[column], right = left + horizontal.count[column];
        pack<real, LANES> best;
        pack<int, LANES> best_pixel;
        const bool has_pixels = image >= 0 && image < n_images && top < bottom && left < right;
        for (int lane = 0; lane < LANES; ++lane) {
            best.value[lane] = has_pixels ? -3.402823466e38f : 0.0f;
            best_pixel.value[lane] = -1;
        }
        const pack<real, LANES>* map = (const pack<real, LANES>*)x + (long long)image * height * width * groups + group;
        for (int p = top; has_pixels && p < bottom; ++p)
            for (int q = left; q < right; ++q) {
                const pack<real, LANES> pixel = map[(long long)(p * width + q) * groups];
                for (int lane = 0; lane < LANES; ++lane)
                    if (pixel.value[lane] > best.value[lane]) {
                        best_pixel.value[lane] = p * width + q;
                        best.value[lane] = pixel.value[lane];
                    }
            }
        const long long bin = (long long)blockIdx.x * columns * groups + item;
        ((pack<real, LANES>*)y)[bin] = best;
        ((pack<int, LANES>*)argmax)[bin] = best_pixel;
    }
}

extern "C" __global__ void roi_max_pooling_forward(
    const real* x, const int* roi_indices, const int* y_first, const int* y_count, const int* x_first,
    const int* x_count, int n_images, int channels, int height, int width, int rows, int columns, int lanes, real* y,
    int* argmax)
{
    const bins vertical = {y_first, y_count}, horizontal = {x_first, x_count};
    if (lanes == 4)
        forward<4>(x, roi_indices, vertical, horizontal, n_images, channels, height, width, rows, columns, y, argmax);
    else
        forward<1>(x, roi_indices, vertical, horizontal, n_images, channels, height, width, rows, columns, y, argmax);
}

// Backward; see tiles.cuh.

// Add the contribution of RoI r to the pixels (top, left) to (top + TILE_ROWS - 1, left).
template <int LANES>
__device__ void add_roi(
    const pack<real, LANES>* gy, const pack<int, LANES>* argmax, int r, int groups, bins vertical, bins horizontal,
    int rows, int columns, int width, int top, int left, real (&sum)[TILE_ROWS][LANES])
{
    for (int row = r * rows; row < (r + 1) * rows; ++row) {
        const int first = vertical.first[row];
        if (first >= top + TILE_ROWS || first + vertical.count[row] <= top)
            continue;
        for (int column = 0; column < columns; ++column) {
            if (!horizontal.contains(r * columns + column, left))
                continue;
            const long long bin = ((long long)row * columns + column) * groups;
            const pack<real, LANES> gradient = gy[bin];
            const pack<int, LANES> pixel = argmax[bin];
            for (int p = 0; p < TILE_ROWS; ++p)
                for (int lane = 0; lane < LANES; ++lane)
                    if (pixel.value[lane] == (top + p) * width + left)
                        sum[p][lane] += gradient.value[lane];
        }
    }
}

template <int LANES>
__device__ void backward(
    const real* gy, const int* argmax, const roi_ranges& rois, bins vertical, bins horizontal, int channels, int height,
    int width, int rows, int columns, int tile_columns, real* gx)
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
            add_roi<LANES>((const pack<real, LANES>*)gy + group, (const pack<int, LANES>*)argmax + group, hits[i],
                           groups, vertical, horizontal, rows, columns, width, area.top, left, sum);
        __syncthreads();
    }
    for (int p = 0; has_pixels && p < TILE_ROWS && area.top + p < height; ++p) {
        const long long pixel = ((long long)area.image * height + area.top + p) * width + left;
        pack<real, LANES> gradient;
        for (int lane = 0; lane < LANES; ++lane)
            gradient.value[lane] = sum[p][lane];
        ((pack<real, LANES>*)gx)[pixel * groups + group] = gradient;
    }
}

extern "C" __global__ void roi_max_pooling_backward(
    const real* gy, const int* argmax, const int* roi_indices, const int* y_first, const int* y_count,
    const int* y_begin, const int* y_end, const int* x_first, const int* x_count, const int* x_begin,
    const int* x_end, int n_rois, int channels, int height, int width, int rows, int columns, int tile_columns,
    int lanes, real* gx)
{
    const roi_ranges rois = {roi_indices, y_begin, y_end, x_begin, x_end, n_rois};
    const bins vertical = {y_first, y_count}, horizontal = {x_first, x_count};
    if (lanes == 4)
        backward<4>(gy, argmax, rois, vertical, horizontal, channels, height, width, rows, columns, tile_columns, gx);
    else
        backward<1>(gy, argmax, rois, vertical, horizontal, channels, height, width, rows, columns, tile_columns, gx);
}
