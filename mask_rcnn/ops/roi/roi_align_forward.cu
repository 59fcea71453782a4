// The forward pass of RoIAlign; see mask_rcnn/ops/roi/roi_align.py for the formula.
//
// Feature maps and pooled RoIs have their channels last, (N, H, W, C) and (R, rows, columns, C), so that the threads of
// a warp read neighbours in memory, with the same weights.  A thread processes several channels at once, its lanes: the
// number in the name of a kernel.  More than 1 need a number of channels that is a multiple of them, and aligned
// memory.  "half" kernels read and write float16 as bits; their arithmetic is float32.
//
// A block computes a rectangle of the bins of one RoI in some of the channels, and tabulates their taps: the pixels
// that a bin reads along an axis, and their weights.  A warp computes one column of the rectangle at a time, so that
// its threads take the same branches.  It keeps the weighted sums of the last even and the last odd map row: the bins
// of a small RoI read the same pixels.

#ifndef REAL
#define REAL float
#endif

typedef REAL real;

#include "runtime/half.cuh"
#include "runtime/pack.cuh"
#include "roi/roi_align.cuh"

const int WARP = 32;
const int FORWARD_THREADS = 7 * WARP;  // at most; _MAX_WARPS of roi_align_gpu.py
const int FORWARD_BLOCKS = 4;  // of a multiprocessor: limits the registers
// 8 lanes of float32 halve the instructions for taps and loops and double the bytes in flight, but need more registers.
// 1000 RoIs of 1024 channels on an H200: 0.135 ms; with 2 blocks of a multiprocessor 0.161 ms, with 4 lanes 0.180 ms.
const int WIDE_FORWARD_BLOCKS = 3;
const int MAX_ROWS = 16, MAX_COLUMNS = 16;  // of a block; _MAX_ROWS and _MAX_COLUMNS of roi_align_gpu.py
const int MAX_TAPS = 512;  // of a block, along both axes
const int MAX_LOADS = 4;  // that a thread issues before it uses the first of them
const int MAX_LEVELS = 4;  // MAX_LEVELS of roi_align_gpu.py

struct tap {
    int offset;  // of the pixel: a multiple of the table's pitch
    float weight;
};

// The taps of the block's bins: those of the rows, then those of the columns.
struct tap_table {
    int count[MAX_ROWS + MAX_COLUMNS];
    float samples[MAX_ROWS + MAX_COLUMNS];  // per bin
    tap taps[MAX_TAPS];  // (bin, slot)
};

// The bins of a block.
struct bin_rectangle {
    int roi, first_row, n_rows, first_column, n_columns;

    __device__ int slots() const { return MAX_TAPS / (n_rows + n_columns); }

    __device__ bool fits(const tap_table& table) const
    {
        bool result = true;
        for (int bin = 0; bin < n_rows + n_columns; ++bin)
            result = result && table.count[bin] <= slots();
        return result;
    }
};

// One of the feature maps.
template <typename element>
struct feature_map {
    const element* images;
    float scale;
    int height, width;
};

// The feature maps of all levels.
template <typename element>
struct feature_maps {
    const element* images[MAX_LEVELS];
    int height[MAX_LEVELS], width[MAX_LEVELS];
    float scale[MAX_LEVELS];
    int n_levels, n_images, channels;

    __device__ bool contains(int level, int image) const
    {
        return level >= 0 && level < n_levels && image >= 0 && image < n_images;
    }

    __device__ feature_map<element> of_level(int level) const
    {
        return {choose(level, images), choose(level, scale), choose(level, height), choose(level, width)};
    }

    // A variable index would move the array from registers to memory.
    template <typename T>
    __device__ static T choose(int level, const T (&values)[MAX_LEVELS])
    {
        return level == 0 ? values[0] : level == 1 ? values[1] : level == 2 ? values[2] : values[3];
    }
};

// All RoIs and their division into bins; the arguments of roi_align_pyramid.
struct pooled_regions {
    const float* rois;
    const int* roi_indices;
    const int* levels;
    int row_bins, column_bins, ratio, aligned, step;

    __device__ axis_params rows(float scale) const { return {scale, row_bins, ratio, aligned, step}; }
    __device__ axis_params columns(float scale) const { return {scale, column_bins, ratio, aligned, step}; }
};

// The epilogue of pooling.
struct epilogue {
    const real* bias;  // per channel, or null
    bool relu;
};

// rows, columns: computed bins of a RoI.
__device__ bin_rectangle bins_of_block(int rows, int columns, int rows_of_block)
{
    const int row_blocks = (rows + rows_of_block - 1) / rows_of_block;
    const int column_blocks = (columns + MAX_COLUMNS - 1) / MAX_COLUMNS;
    const int row_block = blockIdx.x / column_blocks;
    bin_rectangle bins;
    bins.roi = row_block / row_blocks;
    bins.first_row = row_block % row_blocks * rows_of_block;
    bins.n_rows = rows - bins.first_row < rows_of_block ? rows - bins.first_row : rows_of_block;
    bins.first_column = blockIdx.x % column_blocks * MAX_COLUMNS;
    bins.n_columns = columns - bins.first_column < MAX_COLUMNS ? columns - bins.first_column : MAX_COLUMNS;
    return bins;
}

// Add a weight to the tap of a pixel, which is one of the last two taps or a new one.  Return the number of taps.
__device__ int add_tap(int offset, float weight, int count, int slots, tap* taps)
{
    for (int k = count - 1; k >= 0 && k >= count - 2; --k)
        if (taps[k].offset == offset) {
            taps[k].weight += weight;
            return count;
        }
    if (count < slots)
        taps[count] = {offset, weight};
    return count + 1;
}

// Tabulate the taps of a bin; pitch: step between pixels.  Return their number, more than `slots` if they do not fit.
__device__ int fill_taps(const roi_axis& axis, int bin, int pitch, int slots, tap* taps)
{
    int count = 0;
    for (int i = 0; i < axis.grid && count <= slots; ++i) {
        float fraction;
        const int pixel = sample_pixel(axis, bin, i, &fraction);
        if (pixel < 0)
            continue;
        count = add_tap(pixel * pitch, 1.0f - fraction, count, slots, taps);
        if (fraction > 0.0f && count <= slots)
            count = add_tap((pixel + 1) * pitch, fraction, count, slots, taps);
    }
    return count;
}

// Tabulate the taps of the block's bins, one bin per thread; groups: step between the pixels of a map row.
__device__ void tabulate_taps(
    const bin_rectangle& bins, const float* roi, bool is_valid, int height, int width, const axis_params& row_params,
    const axis_params& column_params, int groups, tap_table& table)
{
    for (int bin = threadIdx.x; bin < bins.n_rows + bins.n_columns; bin += blockDim.x) {
        const bool is_row = bin < bins.n_rows;
        const roi_axis axis = is_row ? make_roi_axis(roi[0], roi[2], row_params, height)
            : make_roi_axis(roi[1], roi[3], column_params, width);
        const int number = is_row ? bins.first_row + bin : bins.first_column + bin - bins.n_rows;
        table.samples[bin] = axis.samples();
        table.count[bin] = is_valid
            ? fill_taps(axis, number, is_row ? 1 : groups, bins.slots(), table.taps + bin * bins.slots()) : 0;
    }
}

__device__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// Add N weighted pixels of a map row to `sum`.  The loads have no conditions, so that they do not wait for each other.
template <typename element, int LANES, int N>
__device__ void add_pixels(const pack<element, LANES>* pixels, const tap* taps, real (&sum)[LANES])
{
    pack<element, LANES> pixel[N];
#pragma unroll
    for (int k = 0; k < N; ++k)
        pixel[k] = pixels[taps[k].offset];
#pragma unroll
    for (int k = 0; k < N; ++k)
        for (int lane = 0; lane < LANES; ++lane)
            sum[lane] = multiply_add((real)taps[k].weight, load(pixel[k].value[lane]), sum[lane]);
}

// Return the weighted sum of pixels of a map row in `sum`.
template <typename element, int LANES>
__device__ void sum_line(const pack<element, LANES>* pixels, const tap* taps, int count, real (&sum)[LANES])
{
    for (int lane = 0; lane < LANES; ++lane)
        sum[lane] = 0;
    const tap* const end = taps + count;
    for (; taps + MAX_LOADS <= end; taps += MAX_LOADS)
        add_pixels<element, LANES, MAX_LOADS>(pixels, taps, sum);
    if (taps + 2 <= end) {  // at most 3 are left; a loop would be unrolled and spill registers
        add_pixels<element, LANES, 2>(pixels, taps, sum);
        taps += 2;
    }
    if (taps < end)
        add_pixels<element, LANES, 1>(pixels, taps, sum);
}

// The weighted sum of the pixels of a map row that a column of bins reads.
template <typename element, int LANES>
struct cached_line {
    int row;  // or -1
    real value[LANES];

    // Add the line of a map row times its weight; compute it if it is not the cached one.  pitch: step between rows.
    __device__ void add_to(
        real (&sum)[LANES], const tap& row_tap, const pack<element, LANES>* map, int pitch, const tap* taps, int count)
    {
        if (row_tap.offset != row) {
            row = row_tap.offset;
            sum_line<element, LANES>(map + (long long)row * pitch, taps, count, value);
        }
        for (int lane = 0; lane < LANES; ++lane)
            sum[lane] = multiply_add((real)row_tap.weight, value[lane], sum[lane]);
    }
};

// Apply the epilogue to the sums of a bin and store them.
template <typename element, int LANES>
__device__ void store_bin(
    const real (&sum)[LANES], real factor, const epilogue& end, int group, pack<element, LANES>* target)
{
    pack<element, LANES> bin;
    for (int lane = 0; lane < LANES; ++lane) {
        real value = sum[lane] * factor;
        if (end.bias)
            value += ((const pack<real, LANES>*)end.bias)[group].value[lane];
        store(end.relu && value < 0 ? 0 : value, bin.value[lane]);
    }
    *target = bin;
}

// Pool one column of the block's bins.  map, y: the first element of the image and of the column's first bin, in this
// thread's group of channels; map_pitch, y_pitch: step between the rows of the map and of bins.
template <typename element, int LANES>
__device__ void pool_column(
    const bin_rectangle& bins, const tap_table& table, int column, const pack<element, LANES>* map, int map_pitch,
    int group, const epilogue& end, int y_pitch, pack<element, LANES>* y)
{
    const int slots = bins.slots(), n_taps = table.count[bins.n_rows + column];
    const tap* taps = table.taps + (bins.n_rows + column) * slots;
    const real factor = (real)1 / (real)(table.samples[0] * table.samples[bins.n_rows]);
    cached_line<element, LANES> even = {-1}, odd = {-1};
    for (int row = 0; row < bins.n_rows; ++row) {
        real sum[LANES] = {};
        for (int k = 0; k < table.count[row]; ++k) {
            const tap row_tap = table.taps[row * slots + k];
            if (row_tap.offset % 2)
                odd.add_to(sum, row_tap, map, map_pitch, taps, n_taps);
            else
                even.add_to(sum, row_tap, map, map_pitch, taps, n_taps);
        }
        store_bin<element, LANES>(sum, factor, end, group, y);
        y += y_pitch;
    }
}

// Pool the block's bins sample by sample, for RoIs whose taps do not fit into the table.
template <typename element>
__device__ void pool_samples(
    const bin_rectangle& bins, const roi_axis& rows, const roi_axis& columns, const element* map, int channels,
    const epilogue& end, int row_pitch, element* y)
{
    const int first = blockIdx.y * blockDim.x + threadIdx.x, step = gridDim.y * blockDim.x;
    for (int item = first; item < bins.n_rows * bins.n_columns * channels; item += step) {
        const int channel = item % channels, bin = item / channels;
        const int row = bin / bins.n_columns, column = bin % bins.n_columns;
        real sum[1] = {};
        for (int i = 0; i < rows.grid; ++i)
            for (int j = 0; j < columns.grid; ++j) {
                float down, right;
                const int top = sample_pixel(rows, bins.first_row + row, i, &down);
                const int left = sample_pixel(columns, bins.first_column + column, j, &right);
                if (top < 0 || left < 0)
                    continue;
                for (int corner = 0; corner < 4; ++corner) {
                    const float weight = (corner & 2 ? down : 1.0f - down) * (corner & 1 ? right : 1.0f - right);
                    const long long pixel = (long long)(top + (corner >> 1)) * columns.size + left + (corner & 1);
                    if (weight > 0.0f)  // otherwise the pixel may be outside of the map
                        sum[0] += weight * load(map[pixel * channels + channel]);
                }
            }
        store_bin<element, 1>(sum, (real)1 / (real)(rows.samples() * columns.samples()), end, channel,
                              (pack<element, 1>*)y + ((long long)row * row_pitch + column) * channels + channel);
    }
}

// y: the first bin of the RoI.
template <typename element, int LANES>
__device__ void pool_columns(
    const bin_rectangle& bins, const tap_table& table, const element* map, int width, int channels, int columns,
    const epilogue& end, element* y)
{
    const int groups = channels / LANES, group = blockIdx.y * WARP + threadIdx.x % WARP;
    if (group >= groups)
        return;
    for (int column = threadIdx.x / WARP; column < bins.n_columns; column += blockDim.x / WARP)
        pool_column<element, LANES>(
            bins, table, column, (const pack<element, LANES>*)map + group, width * groups, group, end,
            columns * groups, (pack<element, LANES>*)y + (long long)column * groups + group);
}

// Grid: RoIs x blocks of rows x blocks of columns, groups of channels / WARP.
template <typename element, int LANES>
__device__ void forward(
    const feature_maps<element>& maps, const pooled_regions& regions, int rows_of_block, const epilogue& end,
    element* y)
{
    __shared__ tap_table table;
    const int rows = computed_bins(regions.row_bins, regions.step);
    const int columns = computed_bins(regions.column_bins, regions.step);
    const bin_rectangle bins = bins_of_block(rows, columns, rows_of_block);
    const int level = regions.levels[bins.roi], image = regions.roi_indices[bins.roi];
    const float* roi = regions.rois + 4LL * bins.roi;
    const bool is_valid = maps.contains(level, image);
    const feature_map<element> map = maps.of_level(level);
    const axis_params row_params = regions.rows(map.scale), column_params = regions.columns(map.scale);
    tabulate_taps(bins, roi, is_valid, map.height, map.width, row_params, column_params, maps.channels / LANES, table);
    __syncthreads();
    const element* pixels = map.images + (long long)(is_valid ? image : 0) * map.height * map.width * maps.channels;
    y += (((long long)bins.roi * rows + bins.first_row) * columns + bins.first_column) * maps.channels;
    if (bins.fits(table))
        pool_columns<element, LANES>(bins, table, pixels, map.width, maps.channels, columns, end, y);
    else
        pool_samples<element>(bins, make_roi_axis(roi[0], roi[2], row_params, map.height),
                              make_roi_axis(roi[1], roi[3], column_params, map.width), pixels, maps.channels, end,
                              columns, y);
}

extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, FORWARD_BLOCKS) roi_align_forward_1(
    const real* map0, const real* map1, const real* map2, const real* map3,
    int height0, int height1, int height2, int height3, int width0, int width1, int width2, int width3,
    float scale0, float scale1, float scale2, float scale3, int n_levels, const float* rois, const int* roi_indices,
    const int* levels, int n_images, int channels, int row_bins, int column_bins, int ratio, int aligned, int step,
    int rows_of_block, const real* bias, int has_bias, int relu, real* y)
{
    forward<real, 1>(
        {{map0, map1, map2, map3},
         {height0, height1, height2, height3}, {width0, width1, width2, width3}, {scale0, scale1, scale2, scale3},
         n_levels, n_images, channels},
        {rois, roi_indices, levels, row_bins, column_bins, ratio, aligned, step}, rows_of_block,
        {has_bias ? bias : nullptr, relu != 0}, y);
}

extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, FORWARD_BLOCKS) roi_align_forward_4(
    const real* map0, const real* map1, const real* map2, const real* map3,
    int height0, int height1, int height2, int height3, int width0, int width1, int width2, int width3,
    float scale0, float scale1, float scale2, float scale3, int n_levels, const float* rois, const int* roi_indices,
    const int* levels, int n_images, int channels, int row_bins, int column_bins, int ratio, int aligned, int step,
    int rows_of_block, const real* bias, int has_bias, int relu, real* y)
{
    forward<real, 4>(
        {{map0, map1, map2, map3},
         {height0, height1, height2, height3}, {width0, width1, width2, width3}, {scale0, scale1, scale2, scale3},
         n_levels, n_images, channels},
        {rois, roi_indices, levels, row_bins, column_bins, ratio, aligned, step}, rows_of_block,
        {has_bias ? bias : nullptr, relu != 0}, y);
}

extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, WIDE_FORWARD_BLOCKS) roi_align_forward_8(
    const real* map0, const real* map1, const real* map2, const real* map3,
    int height0, int height1, int height2, int height3, int width0, int width1, int width2, int width3,
    float scale0, float scale1, float scale2, float scale3, int n_levels, const float* rois, const int* roi_indices,
    const int* levels, int n_images, int channels, int row_bins, int column_bins, int ratio, int aligned, int step,
    int rows_of_block, const real* bias, int has_bias, int relu, real* y)
{
    forward<real, 8>(
        {{map0, map1, map2, map3},
         {height0, height1, height2, height3}, {width0, width1, width2, width3}, {scale0, scale1, scale2, scale3},
         n_levels, n_images, channels},
        {rois, roi_indices, levels, row_bins, column_bins, ratio, aligned, step}, rows_of_block,
        {has_bias ? bias : nullptr, relu != 0}, y);
}

extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, FORWARD_BLOCKS) roi_align_forward_half_1(
    const unsigned short* map0, const unsigned short* map1, const unsigned short* map2, const unsigned short* map3,
    int height0, int height1, int height2, int height3, int width0, int width1, int width2, int width3,
    float scale0, float scale1, float scale2, float scale3, int n_levels, const float* rois, const int* roi_indices,
    const int* levels, int n_images, int channels, int row_bins, int column_bins, int ratio, int aligned, int step,
    int rows_of_block, const real* bias, int has_bias, int relu, unsigned short* y)
{
    forward<half_bits, 1>(
        {{(const half_bits*)map0, (const half_bits*)map1, (const half_bits*)map2, (const half_bits*)map3},
         {height0, height1, height2, height3}, {width0, width1, width2, width3}, {scale0, scale1, scale2, scale3},
         n_levels, n_images, channels},
        {rois, roi_indices, levels, row_bins, column_bins, ratio, aligned, step}, rows_of_block,
        {has_bias ? bias : nullptr, relu != 0}, (half_bits*)y);
}

extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, FORWARD_BLOCKS) roi_align_forward_half_8(
    const unsigned short* map0, const unsigned short* map1, const unsigned short* map2, const unsigned short* map3,
    int height0, int height1, int height2, int height3, int width0, int width1, int width2, int width3,
    float scale0, float scale1, float scale2, float scale3, int n_levels, const float* rois, const int* roi_indices,
    const int* levels, int n_images, int channels, int row_bins, int column_bins, int ratio, int aligned, int step,
    int rows_of_block, const real* bias, int has_bias, int relu, unsigned short* y)
{
    forward<half_bits, 8>(
        {{(const half_bits*)map0, (const half_bits*)map1, (const half_bits*)map2, (const half_bits*)map3},
         {height0, height1, height2, height3}, {width0, width1, width2, width3}, {scale0, scale1, scale2, scale3},
         n_levels, n_images, channels},
        {rois, roi_indices, levels, row_bins, column_bins, ratio, aligned, step}, rows_of_block,
        {has_bias ? bias : nullptr, relu != 0}, (half_bits*)y);
}
