// RoIAlign, forward and backward; see mask_rcnn/ops/roi/roi_align.py for the formula.
//
// Feature maps, pooled RoIs and their gradients have their channels last, (N, H, W, C) and (R, rows, columns, C), so
// that the threads of a warp read neighbours in memory, with the same weights.  A thread processes several channels at
// once, its lanes: the number in the name of a forward kernel, 4 or 1 in a backward kernel.  More than 1 need a number
// of channels that is a multiple of them, and aligned memory.  "half" kernels read and write float16 as bits; their
// arithmetic is float32.

#ifndef REAL
#define REAL float
#endif

typedef REAL real;

#include "runtime/half.cuh"
#include "runtime/pack.cuh"
#include "roi/tiles.cuh"

__device__ int computed_bins(int bins, int step) { return (bins + step - 1) / step; }

// The division of RoIs into bins along one axis; the arguments of roi_align.
struct axis_params {
    float scale;
    int bins, ratio, aligned, step;

    __device__ int computed_bins() const { return ::computed_bins(bins, step); }
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

// Forward.  A block computes a rectangle of the bins of one RoI in some of the channels, and tabulates their taps: the
// pixels that a bin reads along an axis, and their weights.  A warp computes one column of the rectangle at a time, so
// that its threads take the same branches.  It keeps the weighted sums of the last even and the last odd map row: the
// bins of a small RoI read the same pixels.

const int WARP = 32;
const int FORWARD_THREADS = 7 * WARP;  // at most; _MAX_WARPS of roi_align.py
const int FORWARD_BLOCKS = 4;  // of a multiprocessor: limits the registers
// 8 lanes of float32 halve the instructions for taps and loops and double the bytes in flight, but need more registers.
// 1000 RoIs of 1024 channels on an H200: 0.135 ms; with 2 blocks of a multiprocessor 0.161 ms, with 4 lanes 0.180 ms.
const int WIDE_FORWARD_BLOCKS = 3;
const int MAX_ROWS = 16, MAX_COLUMNS = 16;  // of a block; _MAX_ROWS and _MAX_COLUMNS of roi_align.py
const int MAX_TAPS = 512;  // of a block, along both axes
const int MAX_LOADS = 4;  // that a thread issues before it uses the first of them
const int MAX_LEVELS = 4;  // _MAX_LEVELS of roi_align.py

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

// Backward; see tiles.cuh.  A block tabulates the weights of its tile for a batch of the collected RoIs at a time.  The
// heaviest tiles overlap many RoIs, whose bins a thread adds up one after the other: so that it does not wait for every
// load, it loads the next chunks of bins while it adds up the current one.

const int BINS_OF_CHUNK = 3;
const int CHUNKS = 2;  // in flight
const int BACKWARD_BLOCKS = 3;  // of a multiprocessor: limits the registers
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
    int y_begin[MAX_IN_BATCH], y_end[MAX_IN_BATCH];  // the rows of bins that read the tile
    float samples[MAX_IN_BATCH], reciprocal[MAX_IN_BATCH];  // samples per bin
    alignas(16) float weight[BACKWARD_TABLE];  // (RoI, rows: bin, pixel; columns: pixel, bin)
};

// The positions of the weights of a RoI in the table.
struct table_layout {
    int rows, columns;  // bins
    int roi_size;

    __device__ int row_start(int b, int bin) const { return b * roi_size + bin * TILE_ROWS; }
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
        float* weights = table.weight + (is_row ? layout.row_start(b, 0) + k : layout.column_start(b, k - TILE_ROWS));
        int begin = n_bins, end = 0;
        for (int bin = 0; bin < n_bins; ++bin) {
            float weight = 0.0f;
            if (may_overlap(axis.bin_start(bin), axis.bin_size, pixel, pixel))
                weight = bin_weight(axis, bin, pixel);
            weights[is_row ? bin * TILE_ROWS : bin] = weight;
            if (weight != 0.0f) {
                begin = bin < begin ? bin : begin;
                end = bin + 1;
            }
        }
        table.begin[b][k] = begin;
        table.end[b][k] = end;
        if (k == 0) {
            table.samples[b] = axis.samples() * rois.axis_of(hits[b], false).samples();
            table.reciprocal[b] = 1.0f / table.samples[b];
        }
    }
}

// Find the rows of bins that read the tile, for the RoIs of a tabulated batch.
__device__ void find_rows_of_bins(int n, int rows, batch_table& table)
{
    for (int b = threadIdx.x; b < n; b += THREADS) {
        int begin = rows, end = 0;
        for (int p = 0; p < TILE_ROWS; ++p) {
            begin = table.begin[b][p] < begin ? table.begin[b][p] : begin;
            end = table.end[b][p] > end ? table.end[b][p] : end;
        }
        table.y_begin[b] = begin;
        table.y_end[b] = end;
    }
}

// The position of a chunk of bins in a batch, packed into one register: `bins` bins of a row, starting with `first`.
struct chunk_position {
    unsigned bits;  // 0: none

    __device__ static chunk_position pack(int b, int row, int first, int bins, bool ends_row)
    {
        return {(unsigned)b << 24 | (unsigned)row << 16 | (unsigned)first << 8 | (unsigned)bins << 1 | ends_row};
    }
    __device__ int b() const { return bits >> 24; }
    __device__ int row() const { return bits >> 16 & 255; }
    __device__ int first() const { return bits >> 8 & 255; }
    __device__ int bins() const { return bits >> 1 & 127; }
    __device__ bool ends_row() const { return bits & 1; }
};

// The chunks of bins that contribute to one column of the tile, in the CPU implementation's order.
struct chunk_cursor {
    const batch_table& table;
    int n, column;
    int b, row, first;  // the next chunk; there is none if b == n

    __device__ int x_begin() const { return table.begin[b][TILE_ROWS + column]; }
    __device__ int x_end() const { return table.end[b][TILE_ROWS + column]; }

    // Go to the first chunk of the b-th RoI or of the next one that has any.
    __device__ void start_roi()
    {
        while (b < n && (x_begin() >= x_end() || table.y_begin[b] >= table.y_end[b]))
            ++b;
        if (b < n) {
            row = table.y_begin[b];
            first = x_begin();
        }
    }

    // Return the next chunk and advance.
    __device__ chunk_position next()
    {
        const int left = x_end() - first;
        const chunk_position chunk = chunk_position::pack(
            b, row, first, left < BINS_OF_CHUNK ? left : BINS_OF_CHUNK, left <= BINS_OF_CHUNK);
        first += BINS_OF_CHUNK;
        if (chunk.ends_row()) {
            first = x_begin();
            if (++row == table.y_end[b]) {
                ++b;
                start_roi();
            }
        }
        return chunk;
    }
};

// Divide by a number of samples, of which `reciprocal` is the rounded reciprocal.  The result is rounded correctly, as
// that of a division, which takes many more instructions (Markstein 1990); infinity becomes NaN.
__device__ float divide(float value, float samples, float reciprocal)
{
    const float quotient = value * reciprocal;
    return fmaf(fmaf(-quotient, samples, value), reciprocal, quotient);
}
__device__ double divide(double value, float samples, float) { return value / samples; }

// Add a chunk of bins to the sums of a column of the tile.  line: the sum of the bins of the row so far.
template <typename element, int LANES>
__device__ void add_chunk(
    const table_layout& layout, const batch_table& table, const chunk_position& chunk, int column,
    const pack<element, LANES> (&bins)[BINS_OF_CHUNK], real (&line)[LANES], real (&sum)[TILE_ROWS][LANES])
{
    const float samples = table.samples[chunk.b()], reciprocal = table.reciprocal[chunk.b()];
    const float* weights = table.weight + layout.column_start(chunk.b(), column) + chunk.first();
#pragma unroll
    for (int j = 0; j < BINS_OF_CHUNK; ++j)
        if (j < chunk.bins())
            for (int lane = 0; lane < LANES; ++lane)
                line[lane] += weights[j] * divide(load(bins[j].value[lane]), samples, reciprocal);
    if (!chunk.ends_row())
        return;
    const pack<float, TILE_ROWS> row_weights
        = *(const pack<float, TILE_ROWS>*)(table.weight + layout.row_start(chunk.b(), chunk.row()));
#pragma unroll
    for (int p = 0; p < TILE_ROWS; ++p)
        if (row_weights.value[p] != 0.0f)  // a NaN must not reach pixels that the row does not read
            for (int lane = 0; lane < LANES; ++lane)
                sum[p][lane] += row_weights.value[p] * line[lane];
    for (int lane = 0; lane < LANES; ++lane)
        line[lane] = 0;
}

// Load the cursor's next chunk of bins, if any, and return its position.  The loads have no conditions, so that they do
// not wait for each other.
template <typename element, int LANES>
__device__ chunk_position load_chunk(
    const table_layout& layout, const int* hits, const pack<element, LANES>* gy, int groups, chunk_cursor& cursor,
    pack<element, LANES> (&bins)[BINS_OF_CHUNK])
{
    if (cursor.b == cursor.n)
        return {0};
    const chunk_position chunk = cursor.next();
    const long long row = (long long)hits[chunk.b()] * layout.rows + chunk.row();
    const pack<element, LANES>* first = gy + (row * layout.columns + chunk.first()) * groups;
#pragma unroll
    for (int j = 0; j < BINS_OF_CHUNK; ++j)
        bins[j] = first[(j < chunk.bins() ? j : 0) * groups];
    return chunk;
}

// Add the contributions of a batch of n RoIs to a column of the tile.  gy: the first bin in this thread's group.
template <typename element, int LANES>
__device__ void add_batch(
    const table_layout& layout, const batch_table& table, const int* hits, int n, int column,
    const pack<element, LANES>* gy, int groups, real (&sum)[TILE_ROWS][LANES])
{
    chunk_cursor cursor = {table, n, column, 0, 0, 0};
    cursor.start_roi();
    chunk_position chunk[CHUNKS];
    pack<element, LANES> bins[CHUNKS][BINS_OF_CHUNK];
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i)
        chunk[i] = load_chunk<element, LANES>(layout, hits, gy, groups, cursor, bins[i]);
    real line[LANES] = {};
    for (;;) {
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            if (!chunk[i].bits)
                return;
            add_chunk<element, LANES>(layout, table, chunk[i], column, bins[i], line, sum);
            chunk[i] = load_chunk<element, LANES>(layout, hits, gy, groups, cursor, bins[i]);
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
            find_rows_of_bins(n, layout.rows, table);
            __syncthreads();
            if (has_pixels)
                add_batch<element, LANES>(layout, table, table.hits + i, n, column,
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

extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) roi_align_backward_4(
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

extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) roi_align_backward_half_4(
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
