// The backward pass of RoIAlign; see mask_rcnn/ops/roi/roi_align.py for the formula and tiles.cuh for the tiles.
//
// Memory layout, lanes and "half" kernels are as in roi_align_forward.cu; a thread has 4 lanes or 1.
//
// A block tabulates the weights of its tile for a batch of the collected RoIs at a time.  The heaviest tiles overlap
// many RoIs, whose bins a thread adds up one after the other: so that it does not wait for every load, it loads the
// next chunks of bins while it adds up the current one.

#ifndef REAL
#define REAL float
#endif

typedef REAL real;

#include "runtime/half.cuh"
#include "runtime/pack.cuh"
#include "roi/tiles.cuh"
#include "roi/roi_align.cuh"

const int BINS_OF_CHUNK = 3;
const int CHUNKS = 2;  // in flight
const int BACKWARD_BLOCKS = 3;  // of a multiprocessor: limits the registers
const int MAX_TILE_COLUMNS = 16;
const int MAX_IN_BATCH = 32;
const int BACKWARD_TABLE = 2048;  // _TABLE_SIZE of roi_align_gpu.py

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
