// RoIAlign, forward and backward; see mask_rcnn/ops/roi/roi_align.py for the formula.
//
// Feature maps, pooled RoIs and their gradients have their channels last, (N, H, W, C) and (R, rows, columns, C), so
// that the threads of a warp read neighbours in memory, with the same weights.  A thread processes `lanes` channels at
// once: either the number in the kernel's name, if the number of channels is a multiple of it and the memory is aligned
// to 16 bytes, or 1.  "half" kernels read and write float16 as bits; their arithmetic is float32.

#ifndef REAL
#define REAL float
#endif

typedef REAL real;

#include "runtime/half.cuh"
#include "runtime/pack.cuh"
#include "roi/tiles.cuh"

// The division of RoIs into bins along one axis; the arguments of roi_align.
struct axis_params {
    float scale;
    int bins, ratio, aligned, step;

    __device__ int computed_bins() const { return (bins + step - 1) / step; }
};

// One RoI along one axis of its map.
struct roi_axis {
    float start, length, bin_size;
    int grid;  // samples per bin; 0 if the RoI is not finite
    int size, step;

    __device__ float samples() const { return (float)(grid > 1 ? grid : 1); }
    __device__ float bin_start(int bin) const { return start + (float)(bin * step) * bin_size; }
};

__device__ roi_axis make_roi_axis(float low, float high, const axis_params& params, int size)
{
    const float offset = params.aligned ? 0.5f : 0.0f;
    roi_axis result;
    result.start = low * params.scale - offset;
    result.length = high * params.scale - offset - result.start;
    if (!params.aligned && !(result.length >= 1.0f))
        result.length = 1.0f;
    result.bin_size = result.length / (float)params.bins;
    result.grid = 0;
    if (isfinite(result.start) && isfinite(result.length))
        result.grid = params.ratio > 0 ? params.ratio : (int)ceilf(result.bin_size);
    result.size = size;
    result.step = params.step;
    return result;
}

// Return the pixel at or before the i-th sample of a bin, or -1 outside of the map, and the weight of the next pixel.
__device__ int sample_pixel(const roi_axis& axis, int bin, int i, float* fraction)
{
    // roi_align_op.cc's expression, operation by operation: its rounding decides which pixel a sample falls on.
    float position = axis.bin_start(bin) + ((float)i + 0.5f) * axis.bin_size / (float)axis.grid;
    if (position < -1.0f || position > (float)axis.size)
        return -1;
    position = fmaxf(position, 0.0f);
    int pixel = (int)position;
    if (pixel >= axis.size - 1) {
        pixel = axis.size - 1;
        position = (float)pixel;
    }
    *fraction = position - (float)pixel;
    return pixel;
}

// The weight of a pixel in a bin: the sum over the bin's samples, in their order.
__device__ float bin_weight(const roi_axis& axis, int bin, int pixel)
{
    float weight = 0.0f, fraction;
    for (int i = 0; i < axis.grid; ++i) {
        const int lower = sample_pixel(axis, bin, i, &fraction);
        if (lower >= 0 && lower == pixel)
            weight += 1.0f - fraction;
        else if (lower >= 0 && lower + 1 == pixel)
            weight += fraction;
    }
    return weight;
}

// Return whether an interval may read a pixel from begin to end.  The result may be true for an interval that does not,
// but is never false for one that does.
__device__ bool may_overlap(float position, float length, int begin, int end)
{
    return fmaxf(position, position + length) + 2.0f > (float)begin
        && fminf(position, position + length) - 2.0f < (float)end;
}

// Forward.  A block computes one row of bins of one RoI, at most MAX_COLUMNS of them, in all channels.

const int MAX_COLUMNS = 32;
const int FORWARD_TABLE = 512;

// The pixels of the block's bins and their weights: the columns, and after them the row.
struct bin_table {
    int first[MAX_COLUMNS + 1], count[MAX_COLUMNS + 1];
    float weight[FORWARD_TABLE];
};

// The bins that a block computes.
struct row_of_bins {
    roi_axis rows, columns;
    int row, first_column, n_columns;
    int slots;  // capacity of the table per bin

    __device__ bool fits(const bin_table& table) const
    {
        bool result = true;
        for (int bin = 0; bin <= n_columns; ++bin)
            result = result && table.count[bin] <= slots;
        return result;
    }

    // The weight of the i-th pixel of a bin.
    __device__ float weight(const bin_table& table, int bin, int i) const
    {
        const int pixel = table.first[bin] + i;
        return bin < n_columns ? bin_weight(columns, first_column + bin, pixel) : bin_weight(rows, row, pixel);
    }
};

__device__ void find_pixels(const row_of_bins& bins, bool is_valid, bin_table& table)
{
    const int bin = threadIdx.x;
    if (bin > bins.n_columns)
        return;
    const bool is_column = bin < bins.n_columns;
    const roi_axis& axis = is_column ? bins.columns : bins.rows;
    int begin = axis.size, end = 0;
    for (int i = 0; is_valid && i < axis.grid; ++i) {
        float fraction;
        const int pixel = sample_pixel(axis, is_column ? bins.first_column + bin : bins.row, i, &fraction);
        if (pixel < 0)
            continue;
        const int upper = pixel < axis.size - 1 ? pixel + 1 : pixel;
        begin = pixel < begin ? pixel : begin;
        end = upper >= end ? upper + 1 : end;
    }
    table.first[bin] = begin;
    table.count[bin] = end > begin ? end - begin : 0;
}

__device__ void fill_weights(const row_of_bins& bins, bin_table& table)
{
    for (int entry = threadIdx.x; entry < (bins.n_columns + 1) * bins.slots; entry += blockDim.x) {
        const int bin = entry / bins.slots, i = entry % bins.slots;
        if (i < table.count[bin])
            table.weight[entry] = bins.weight(table, bin, i);
    }
}

// map: the feature map of the RoI's image.  y: the block's first bin.  IN_TABLE: whether the table has all weights.
template <typename element, int LANES, bool IN_TABLE>
__device__ void pool(const row_of_bins& bins, const bin_table& table, const element* map, int channels, element* y)
{
    const int groups = channels / LANES;
    const int first_row = table.first[bins.n_columns], n_rows = table.count[bins.n_columns];
    const real samples = (real)(bins.rows.samples() * bins.columns.samples());
    for (int item = threadIdx.x; item < bins.n_columns * groups; item += blockDim.x) {
        const int column = item / groups, group = item % groups;
        const int n_pixels = table.count[column];
        const pack<element, LANES>* first_pixel = (const pack<element, LANES>*)map + group
            + ((long long)first_row * bins.columns.size + table.first[column]) * groups;
        real sum[LANES] = {};
        for (int i = 0; i < n_rows; ++i) {
            const float row_weight = IN_TABLE ? table.weight[bins.n_columns * bins.slots + i]
                : bins.weight(table, bins.n_columns, i);
            if (row_weight == 0.0f)  // a row between samples that are far apart
                continue;
            const pack<element, LANES>* pixels = first_pixel + (long long)i * bins.columns.size * groups;
            real line[LANES] = {};
#pragma unroll 2
            for (int j = 0; j < n_pixels; ++j) {
                const pack<element, LANES> pixel = pixels[(long long)j * groups];
                const float weight = IN_TABLE ? table.weight[column * bins.slots + j] : bins.weight(table, column, j);
                for (int lane = 0; lane < LANES; ++lane)
                    line[lane] += weight * load(pixel.value[lane]);
            }
            for (int lane = 0; lane < LANES; ++lane)
                sum[lane] += row_weight * line[lane];
        }
        pack<element, LANES> bin;
        for (int lane = 0; lane < LANES; ++lane)
            store(sum[lane] / samples, bin.value[lane]);
        ((pack<element, LANES>*)y)[item] = bin;
    }
}

template <typename T>
__device__ T choose(int level, T a, T b, T c, T d)
{
    return level == 0 ? a : level == 1 ? b : level == 2 ? c : d;
}

// Grid: RoIs x rows of bins, columns / MAX_COLUMNS.
template <typename element, int LANES>
__device__ void forward(
    const element* map, int height, int width, axis_params row_params, axis_params column_params, const float* roi,
    int image, bool is_valid, int lanes, int channels, element* y)
{
    __shared__ bin_table table;
    __shared__ row_of_bins bins;
    const int columns = column_params.computed_bins();
    if (threadIdx.x == 0) {
        bins.rows = make_roi_axis(roi[0], roi[2], row_params, height);
        bins.columns = make_roi_axis(roi[1], roi[3], column_params, width);
        bins.row = blockIdx.x % row_params.computed_bins();
        bins.first_column = blockIdx.y * MAX_COLUMNS;
        bins.n_columns = columns - bins.first_column < MAX_COLUMNS ? columns - bins.first_column : MAX_COLUMNS;
        bins.slots = FORWARD_TABLE / (bins.n_columns + 1);
    }
    __syncthreads();
    find_pixels(bins, is_valid, table);
    __syncthreads();
    fill_weights(bins, table);
    __syncthreads();
    map += (long long)(is_valid ? image : 0) * height * width * channels;
    y += ((long long)blockIdx.x * columns + bins.first_column) * channels;
    if (!bins.fits(table))
        pool<element, 1, false>(bins, table, map, channels, y);
    else if (lanes == LANES)
        pool<element, LANES, true>(bins, table, map, channels, y);
    else
        pool<element, 1, true>(bins, table, map, channels, y);
}

extern "C" __global__ void roi_align_forward_4(
    const real* map0, const real* map1, const real* map2, const real* map3,
    int height0, int height1, int height2, int height3, int width0, int width1, int width2, int width3,
    float scale0, float scale1, float scale2, float scale3, int n_levels, const float* rois, const int* roi_indices,
    const int* levels, int n_images, int channels, int row_bins, int column_bins, int ratio, int aligned, int step,
    int lanes, real* y)
{
    const int r = blockIdx.x / ((row_bins + step - 1) / step);
    const int level = levels[r], image = roi_indices[r];
    const float scale = choose(level, scale0, scale1, scale2, scale3);
    forward<real, 4>(
        choose(level, map0, map1, map2, map3), choose(level, height0, height1, height2, height3),
        choose(level, width0, width1, width2, width3), {scale, row_bins, ratio, aligned, step},
        {scale, column_bins, ratio, aligned, step}, rois + 4LL * r, image,
        level >= 0 && level < n_levels && image >= 0 && image < n_images, lanes, channels, y);
}

extern "C" __global__ void roi_align_forward_half_8(
    const unsigned short* map0, const unsigned short* map1, const unsigned short* map2, const unsigned short* map3,
    int height0, int height1, int height2, int height3, int width0, int width1, int width2, int width3,
    float scale0, float scale1, float scale2, float scale3, int n_levels, const float* rois, const int* roi_indices,
    const int* levels, int n_images, int channels, int row_bins, int column_bins, int ratio, int aligned, int step,
    int lanes, unsigned short* y)
{
    const int r = blockIdx.x / ((row_bins + step - 1) / step);
    const int level = levels[r], image = roi_indices[r];
    const float scale = choose(level, scale0, scale1, scale2, scale3);
    forward<half_bits, 8>(
        (const half_bits*)choose(level, map0, map1, map2, map3), choose(level, height0, height1, height2, height3),
        choose(level, width0, width1, width2, width3), {scale, row_bins, ratio, aligned, step},
        {scale, column_bins, ratio, aligned, step}, rois + 4LL * r, image,
        level >= 0 && level < n_levels && image >= 0 && image < n_images, lanes, channels, (half_bits*)y);
}

// Backward; see tiles.cuh.  A block tabulates the weights of its tile for a batch of the collected RoIs at a time.

const int MAX_TILE_COLUMNS = 16;
const int MAX_IN_BATCH = 32;
const int BACKWARD_TABLE = 2048;  // _TABLE_SIZE of roi_align.py

// All RoIs; only those of `level` are pooled from the map.
struct regions {
    const float* rois;
    const int* roi_indices;
    const int* levels;
    int n, level;
    axis_params row_params, column_params;
    int height, width;

    __device__ roi_axis axis_of(int r, bool is_vertical) const
    {
        const float* corner = rois + 4LL * r + (is_vertical ? 0 : 1);
        const axis_params params = {row_params.scale, is_vertical ? row_params.bins : column_params.bins,
                                    row_params.ratio, row_params.aligned, row_params.step};
        return make_roi_axis(corner[0], corner[2], params, is_vertical ? height : width);
    }

    __device__ bool may_overlap(int r, const tile& area) const
    {
        if (roi_indices[r] != area.image || levels[r] != level)
            return false;
        const roi_axis y = axis_of(r, true), x = axis_of(r, false);
        return y.grid > 0 && x.grid > 0 && ::may_overlap(y.start, y.length, area.top, area.top + TILE_ROWS)
            && ::may_overlap(x.start, x.length, area.left, area.left + area.columns);
    }
};

// The weights of a batch of RoIs at the pixels of the tile: its rows, then its columns.
struct batch_table {
    int hits[MAX_HITS];  // the collected RoIs; the batch is a part of them
    int begin[MAX_IN_BATCH][TILE_ROWS + MAX_TILE_COLUMNS];  // the bins that read a pixel, from begin to end
    int end[MAX_IN_BATCH][TILE_ROWS + MAX_TILE_COLUMNS];
    float samples[MAX_IN_BATCH];
    float weight[BACKWARD_TABLE];  // (RoI, pixel, bin)
};

// The positions of the weights of a RoI in the table.
struct table_layout {
    int rows, columns;  // bins
    int roi_size;

    __device__ int row_start(int b, int row) const { return b * roi_size + row * rows; }
    __device__ int column_start(int b, int column) const
    {
        return b * roi_size + TILE_ROWS * rows + column * columns;
    }
};

__device__ void tabulate(
    const regions& rois, const tile& area, const table_layout& layout, const int* hits, int n, batch_table& table)
{
    const int pixels = TILE_ROWS + area.columns;
    for (int entry = threadIdx.x; entry < n * pixels; entry += THREADS) {
        const int b = entry / pixels, k = entry % pixels;
        const bool is_row = k < TILE_ROWS;
        const roi_axis axis = rois.axis_of(hits[b], is_row);
        const int n_bins = is_row ? layout.rows : layout.columns;
        const int pixel = is_row ? area.top + k : area.left + k - TILE_ROWS;
        float* weights = table.weight + (is_row ? layout.row_start(b, k) : layout.column_start(b, k - TILE_ROWS));
        int begin = n_bins, end = 0;
        for (int bin = 0; bin < n_bins; ++bin) {
            float weight = 0.0f;
            if (may_overlap(axis.bin_start(bin), axis.bin_size, pixel, pixel))
                weight = bin_weight(axis, bin, pixel);
            weights[bin] = weight;
            if (weight != 0.0f) {
                begin = bin < begin ? bin : begin;
                end = bin + 1;
            }
        }
        table.begin[b][k] = begin;
        table.end[b][k] = end;
        if (k == 0)
            table.samples[b] = axis.samples() * rois.axis_of(hits[b], false).samples();
    }
}

// Add the contribution of RoI r, the b-th of the batch, to a column of the tile, in the CPU implementation's order.
template <typename element, int LANES>
__device__ void add_roi(
    const table_layout& layout, const batch_table& table, int b, int r, int column,
    const pack<element, LANES>* gy, int groups, real (&sum)[TILE_ROWS][LANES])
{
    const int x_begin = table.begin[b][TILE_ROWS + column], x_end = table.end[b][TILE_ROWS + column];
    if (x_begin >= x_end)
        return;
    int y_begin = layout.rows, y_end = 0;
    for (int p = 0; p < TILE_ROWS; ++p) {
        y_begin = table.begin[b][p] < y_begin ? table.begin[b][p] : y_begin;
        y_end = table.end[b][p] > y_end ? table.end[b][p] : y_end;
    }
    const real samples = (real)table.samples[b];
    for (int row = y_begin; row < y_end; ++row) {
        const pack<element, LANES>* bins = gy + ((long long)r * layout.rows + row) * layout.columns * groups;
        real line[LANES] = {};
#pragma unroll 2
        for (int j = x_begin; j < x_end; ++j) {
            const pack<element, LANES> bin = bins[(long long)j * groups];
            const float weight = table.weight[layout.column_start(b, column) + j];
            for (int lane = 0; lane < LANES; ++lane)
                line[lane] += weight * (load(bin.value[lane]) / samples);
        }
        for (int p = 0; p < TILE_ROWS; ++p) {
            const float weight = table.weight[layout.row_start(b, p) + row];
            if (weight == 0.0f)  // a NaN must not reach pixels that the row does not read
                continue;
            for (int lane = 0; lane < LANES; ++lane)
                sum[p][lane] += weight * line[lane];
        }
    }
}

template <typename element, int LANES>
__device__ void backward(
    const element* gy, const regions& rois, int channels, int tile_columns, batch_table& table, element* gx)
{
    const tile area = tile_of_block(rois.height, rois.width, tile_columns);
    const int groups = channels / LANES, groups_of_block = THREADS / tile_columns;
    const int column = threadIdx.x / groups_of_block;
    const int group = blockIdx.y * groups_of_block + threadIdx.x % groups_of_block;
    const bool has_pixels = group < groups && area.left + column < rois.width;
    table_layout layout;
    layout.rows = rois.row_params.computed_bins();
    layout.columns = rois.column_params.computed_bins();
    layout.roi_size = TILE_ROWS * layout.rows + tile_columns * layout.columns;
    const int capacity = BACKWARD_TABLE / layout.roi_size;
    const int in_batch = capacity < MAX_IN_BATCH ? capacity : MAX_IN_BATCH;

    real sum[TILE_ROWS][LANES] = {};
    for (int next = 0; next < rois.n;) {
        const int n_hits = collect_overlapping_rois(rois, area, next, table.hits);
        for (int i = 0; i < n_hits; i += in_batch) {
            const int n = n_hits - i < in_batch ? n_hits - i : in_batch;
            tabulate(rois, area, layout, table.hits + i, n, table);
            __syncthreads();
            for (int b = 0; has_pixels && b < n; ++b)
                add_roi<element, LANES>(layout, table, b, table.hits[i + b], column,
                                        (const pack<element, LANES>*)gy + group, groups, sum);
            __syncthreads();
        }
    }
    for (int p = 0; has_pixels && p < TILE_ROWS && area.top + p < rois.height; ++p) {
        const long long pixel = ((long long)area.image * rois.height + area.top + p) * rois.width + area.left + column;
        pack<element, LANES> gradient;
        for (int lane = 0; lane < LANES; ++lane)
            store(sum[p][lane], gradient.value[lane]);
        ((pack<element, LANES>*)gx)[pixel * groups + group] = gradient;
    }
}

extern "C" __global__ void roi_align_backward_4(
    const real* gy, const float* rois, const int* roi_indices, const int* levels, int n_rois, int level, float scale,
    int channels, int height, int width, int row_bins, int column_bins, int ratio, int aligned, int step,
    int tile_columns, int lanes, real* gx)
{
    __shared__ batch_table table;
    const regions all_rois = {rois, roi_indices, levels, n_rois, level, {scale, row_bins, ratio, aligned, step},
                          {scale, column_bins, ratio, aligned, step}, height, width};
    if (lanes == 4)
        backward<real, 4>(gy, all_rois, channels, tile_columns, table, gx);
    else
        backward<real, 1>(gy, all_rois, channels, tile_columns, table, gx);
}

extern "C" __global__ void roi_align_backward_half_4(
    const unsigned short* gy, const float* rois, const int* roi_indices, const int* levels, int n_rois, int level,
    float scale, int channels, int height, int width, int row_bins, int column_bins, int ratio, int aligned, int step,
    int tile_columns, int lanes, unsigned short* gx)
{
    __shared__ batch_table table;
    const regions all_rois = {rois, roi_indices, levels, n_rois, level, {scale, row_bins, ratio, aligned, step},
                          {scale, column_bins, ratio, aligned, step}, height, width};
    if (lanes == 4)
        backward<half_bits, 4>((const half_bits*)gy, all_rois, channels, tile_columns, table, (half_bits*)gx);
    else
        backward<half_bits, 1>((const half_bits*)gy, all_rois, channels, tile_columns, table, (half_bits*)gx);
}
