// Group normalisation of images whose channels are innermost, (N, H, W, C); see mask_rcnn/ops/conv/group_norm_gpu.py.
//
// Kernels that read images divide the pixels of an image into chunks and the channels into slabs.  The index of a block
// is blockIdx.x = image * number of chunks + chunk and blockIdx.y = slab.  The order of all additions is fixed.

typedef REAL real;

#include "runtime/half.cuh"
#include "runtime/pack.cuh"
#include "runtime/block_sum.cuh"

const int THREADS = 256;  // of a block that reads images; _THREADS of group_norm_gpu.py
const int PIXELS = 32;  // of a thread; _THREAD_PIXELS of group_norm_gpu.py
const int STATISTICS_THREADS = 32;  // of a block that adds the sums of chunks; _STATISTICS_THREADS

// The sizes of a launch.  A slab has `columns` packs of channels, a power of two.
struct sizes {
    int n_pixels, channels, group_channels, columns, n_chunks;
};

// The part of a thread: LANES channels, starting with `channel`, of every step-th pixel.  Pixels and positions are
// counted in packs of channels from the start of the batch.
template <int LANES>
struct part {
    int image, channel;
    long long first, end, step;
    bool is_empty;

    __device__ part(sizes s)
    {
        const int rows = THREADS / s.columns, row = threadIdx.x / s.columns, packs = s.channels / LANES;
        const int column = blockIdx.y * s.columns + threadIdx.x % s.columns;
        const int begin = blockIdx.x % s.n_chunks * rows * PIXELS;
        const int stop = s.n_pixels - begin < rows * PIXELS ? s.n_pixels : begin + rows * PIXELS;
        image = blockIdx.x / s.n_chunks;
        channel = column * LANES;
        const long long start = (long long)image * s.n_pixels;
        first = (start + begin + row) * packs + column;
        end = (start + stop) * packs;
        step = (long long)rows * packs;
        is_empty = column >= packs;
    }
};

// The index of a channel's group of an image.
__device__ int group_index(sizes s, int image, int channel)
{
    return image * (s.channels / s.group_channels) + channel / s.group_channels;
}

// The statistics of each group are its mean, the rounding error of the mean, and 1 / sqrt(variance + eps).  Until the
// mean is known, its place has the origin: the first element of the group.
const int MEAN = 0, ERROR = 1, RATE = 2, N_STATISTICS = 3;

// Differences from the mean keep their digits if the mean is much larger.
__device__ real subtract(real x, real mean, real error) { return x - mean - error; }

// Sum x - origin and its square in double precision for each channel of a chunk, and store the origins.  With a gradient
// gy, sum gy and gy * (x - mean).
template <typename element, int LANES, bool HAS_GRADIENT>
__device__ void sum_thread(const element* x, const element* gy, sizes s, real* statistics, double (&sum)[2 * LANES])
{
    typedef pack<element, LANES> lanes;
    const part<LANES> own(s);
    if (own.is_empty)
        return;
    real mean[LANES], error[LANES];
    for (int lane = 0; lane < LANES; ++lane) {
        const int channel = own.channel + lane, first = channel / s.group_channels * s.group_channels;
        real* group = statistics + N_STATISTICS * group_index(s, own.image, channel);
        error[lane] = HAS_GRADIENT ? group[ERROR] : 0;
        mean[lane] = HAS_GRADIENT ? group[MEAN] : load(x[(long long)own.image * s.n_pixels * s.channels + first]);
        if (!HAS_GRADIENT && channel == first && blockIdx.x % s.n_chunks == 0 && threadIdx.x < s.columns)
            group[MEAN] = mean[lane];
    }
#pragma unroll 4
    for (long long i = own.first; i < own.end; i += own.step) {
        const lanes values = ((const lanes*)x)[i];
        const lanes gradients = HAS_GRADIENT ? ((const lanes*)gy)[i] : values;
        for (int lane = 0; lane < LANES; ++lane) {
            const double difference = HAS_GRADIENT ? subtract(load(values.value[lane]), mean[lane], error[lane])
                                                   : (double)load(values.value[lane]) - mean[lane];
            const double factor = HAS_GRADIENT ? load(gradients.value[lane]) : difference;
            sum[lane] += factor;
            sum[LANES + lane] += factor * difference;
        }
    }
}

// Write the sums of a block's channels.  sums: (2, N * number of chunks, C).
template <typename element, int LANES>
__device__ void sum_chunk(
    const element* x, const element* gy, bool has_gradient, sizes s, real* statistics, double* sums)
{
    __shared__ double thread_sums[2 * LANES][THREADS];
    const int thread = threadIdx.x;
    double sum[2 * LANES] = {};
    if (has_gradient)
        sum_thread<element, LANES, true>(x, gy, s, statistics, sum);
    else
        sum_thread<element, LANES, false>(x, gy, s, statistics, sum);
    for (int k = 0; k < 2 * LANES; ++k)
        thread_sums[k][thread] = sum[k];
    for (int half = THREADS / 2; half >= s.columns; half /= 2) {
        __syncthreads();
        if (thread < half)
            for (int k = 0; k < 2 * LANES; ++k)
                thread_sums[k][thread] += thread_sums[k][thread + half];
    }
    const int channel = (blockIdx.y * s.columns + thread) * LANES;
    if (thread < s.columns && channel < s.channels)
        for (int k = 0; k < 2 * LANES; ++k)
            sums[(k / LANES * (long long)gridDim.x + blockIdx.x) * s.channels + channel + k % LANES] =
                thread_sums[k][thread];
}

// Compute the statistics of each group from the sums of chunks.  A block per group.
extern "C" __global__ void group_norm_statistics(
    const double* sums, int n_pixels, int channels, int group_channels, int n_chunks, double eps, real* statistics)
{
    __shared__ double thread_sums[2][STATISTICS_THREADS];
    const int n_groups = channels / group_channels, image = blockIdx.x / n_groups;
    const long long start = (long long)image * n_chunks * channels + blockIdx.x % n_groups * group_channels;
    const long long size = (long long)(gridDim.x / n_groups) * n_chunks * channels;
    double sum = 0, square_sum = 0;
    for (int i = threadIdx.x; i < n_chunks * group_channels; i += STATISTICS_THREADS) {
        const long long position = start + (long long)(i / group_channels) * channels + i % group_channels;
        sum += sums[position];
        square_sum += sums[size + position];
    }
    const double n = (double)n_pixels * group_channels;
    const double difference = block_sum(sum, thread_sums[0]) / n;
    const double variance = block_sum(square_sum, thread_sums[1]) / n - difference * difference;
    if (threadIdx.x == 0) {
        real* group = statistics + N_STATISTICS * blockIdx.x;
        const double mean = group[MEAN] + difference;
        group[MEAN] = (real)mean;
        group[ERROR] = (real)(mean - group[MEAN]);
        group[RATE] = (real)(1 / sqrt((variance < 0 ? 0 : variance) + eps));  // a negative rounding error; NaN remains
    }
}

// Add the sums of chunks.  A block per group.  channel_sums: (2, N, C), the sums over pixels of gy and of
// gy * normalised x; means: (N * G, 2), the means over a group of the two, multiplied by gamma.
extern "C" __global__ void group_norm_gradient_means(
    const double* sums, const real* gamma, const real* statistics, int n_pixels, int channels, int group_channels,
    int n_chunks, double* channel_sums, real* means)
{
    __shared__ double thread_sums[2][STATISTICS_THREADS];
    const int n_groups = channels / group_channels, image = blockIdx.x / n_groups;
    const int first = blockIdx.x % n_groups * group_channels;
    const long long size = (long long)(gridDim.x / n_groups) * n_chunks * channels;
    const double rate = statistics[N_STATISTICS * blockIdx.x + RATE];
    double mean = 0, product_mean = 0;
    for (int channel = first; channel < first + group_channels; ++channel) {
        double sum = 0, product_sum = 0;
        for (int i = threadIdx.x; i < n_chunks; i += STATISTICS_THREADS) {
            const long long position = ((long long)image * n_chunks + i) * channels + channel;
            sum += sums[position];
            product_sum += sums[size + position];
        }
        __syncthreads();  // all threads have read the results of the channel before
        sum = block_sum(sum, thread_sums[0]);
        product_sum = rate * block_sum(product_sum, thread_sums[1]);
        mean += gamma[channel] * sum;
        product_mean += gamma[channel] * product_sum;
        if (threadIdx.x == 0) {
            const long long position = (long long)image * channels + channel;
            channel_sums[position] = sum;
            channel_sums[(long long)(gridDim.x / n_groups) * channels + position] = product_sum;
        }
    }
    if (threadIdx.x == 0) {
        const double n = (double)n_pixels * group_channels;
        means[2 * blockIdx.x] = (real)(mean / n);
        means[2 * blockIdx.x + 1] = (real)(product_mean / n);
    }
}

// Write gamma * (x - mean) / sqrt(variance + eps) + beta + residual to y, which may be x.
template <typename element, int LANES>
__device__ void normalize(
    const element* x, const element* residual, bool has_residual, bool relu, const real* gamma, const real* beta,
    const real* statistics, sizes s, element* y)
{
    typedef pack<element, LANES> lanes;
    const part<LANES> own(s);
    if (own.is_empty)
        return;
    real mean[LANES], error[LANES], scale[LANES], offset[LANES];
    for (int lane = 0; lane < LANES; ++lane) {
        const int channel = own.channel + lane;
        const real* group = statistics + N_STATISTICS * group_index(s, own.image, channel);
        mean[lane] = group[MEAN];
        error[lane] = group[ERROR];
        scale[lane] = group[RATE] * gamma[channel];
        offset[lane] = beta[channel];
    }
#pragma unroll 4
    for (long long i = own.first; i < own.end; i += own.step) {
        lanes values = ((const lanes*)x)[i];
        lanes terms = values;
        if (has_residual)
            terms = ((const lanes*)residual)[i];
        for (int lane = 0; lane < LANES; ++lane) {
            real value = subtract(load(values.value[lane]), mean[lane], error[lane]) * scale[lane] + offset[lane];
            if (has_residual)
                value += load(terms.value[lane]);
            store(relu && value < 0 ? 0 : value, values.value[lane]);  // NaN remains
        }
        ((lanes*)y)[i] = values;
    }
}

// Write the gradient with respect to x to gx, which may be gy (Wu and He 2018, the derivative of equation 1).
template <typename element, int LANES>
__device__ void differentiate(
    const element* x, const element* gy, const real* gamma, const real* statistics, const real* means, sizes s,
    element* gx)
{
    typedef pack<element, LANES> lanes;
    const part<LANES> own(s);
    if (own.is_empty)
        return;
    real mean[LANES], error[LANES], scale[LANES], factor[LANES], offset[LANES];
    for (int lane = 0; lane < LANES; ++lane) {
        const int channel = own.channel + lane, index = group_index(s, own.image, channel);
        const real *group = statistics + N_STATISTICS * index, rate = group[RATE];
        mean[lane] = group[MEAN];
        error[lane] = group[ERROR];
        scale[lane] = rate * gamma[channel];
        offset[lane] = rate * means[2 * index];
        factor[lane] = rate * rate * means[2 * index + 1];
    }
#pragma unroll 4
    for (long long i = own.first; i < own.end; i += own.step) {
        const lanes values = ((const lanes*)x)[i];
        lanes gradients = ((const lanes*)gy)[i];
        for (int lane = 0; lane < LANES; ++lane)
            store(load(gradients.value[lane]) * scale[lane] - offset[lane]
                      - subtract(load(values.value[lane]), mean[lane], error[lane]) * factor[lane],
                  gradients.value[lane]);
        ((lanes*)gx)[i] = gradients;
    }
}

extern "C" __global__ void group_norm_sums_1(
    const real* x, const real* gy, int has_gradient, int n_pixels, int channels, int group_channels, int columns,
    int n_chunks, real* statistics, double* sums)
{
    sum_chunk<real, 1>(x, gy, has_gradient != 0, sizes{n_pixels, channels, group_channels, columns, n_chunks},
                       statistics, sums);
}

extern "C" __global__ void group_norm_sums_4(
    const real* x, const real* gy, int has_gradient, int n_pixels, int channels, int group_channels, int columns,
    int n_chunks, real* statistics, double* sums)
{
    sum_chunk<real, 4>(x, gy, has_gradient != 0, sizes{n_pixels, channels, group_channels, columns, n_chunks},
                       statistics, sums);
}

extern "C" __global__ void group_norm_sums_half_1(
    const unsigned short* x, const unsigned short* gy, int has_gradient, int n_pixels, int channels,
    int group_channels, int columns, int n_chunks, real* statistics, double* sums)
{
    sum_chunk<half_bits, 1>((const half_bits*)x, (const half_bits*)gy, has_gradient != 0,
                            sizes{n_pixels, channels, group_channels, columns, n_chunks}, statistics, sums);
}

extern "C" __global__ void group_norm_sums_half_8(
    const unsigned short* x, const unsigned short* gy, int has_gradient, int n_pixels, int channels,
    int group_channels, int columns, int n_chunks, real* statistics, double* sums)
{
    sum_chunk<half_bits, 8>((const half_bits*)x, (const half_bits*)gy, has_gradient != 0,
                            sizes{n_pixels, channels, group_channels, columns, n_chunks}, statistics, sums);
}

extern "C" __global__ void group_norm_1(
    const real* x, const real* residual, int has_residual, int relu, const real* gamma, const real* beta,
    const real* statistics, int n_pixels, int channels, int group_channels, int columns, int n_chunks, real* y)
{
    normalize<real, 1>(x, residual, has_residual != 0, relu != 0, gamma, beta, statistics,
                       sizes{n_pixels, channels, group_channels, columns, n_chunks}, y);
}

extern "C" __global__ void group_norm_4(
    const real* x, const real* residual, int has_residual, int relu, const real* gamma, const real* beta,
    const real* statistics, int n_pixels, int channels, int group_channels, int columns, int n_chunks, real* y)
{
    normalize<real, 4>(x, residual, has_residual != 0, relu != 0, gamma, beta, statistics,
                       sizes{n_pixels, channels, group_channels, columns, n_chunks}, y);
}

extern "C" __global__ void group_norm_half_1(
    const unsigned short* x, const unsigned short* residual, int has_residual, int relu, const real* gamma,
    const real* beta, const real* statistics, int n_pixels, int channels, int group_channels, int columns,
    int n_chunks, unsigned short* y)
{
    normalize<half_bits, 1>((const half_bits*)x, (const half_bits*)residual, has_residual != 0, relu != 0, gamma, beta,
                            statistics, sizes{n_pixels, channels, group_channels, columns, n_chunks}, (half_bits*)y);
}

extern "C" __global__ void group_norm_half_8(
    const unsigned short* x, const unsigned short* residual, int has_residual, int relu, const real* gamma,
    const real* beta, const real* statistics, int n_pixels, int channels, int group_channels, int columns,
    int n_chunks, unsigned short* y)
{
    normalize<half_bits, 8>((const half_bits*)x, (const half_bits*)residual, has_residual != 0, relu != 0, gamma, beta,
                            statistics, sizes{n_pixels, channels, group_channels, columns, n_chunks}, (half_bits*)y);
}

extern "C" __global__ void group_norm_gradient_1(
    const real* x, const real* gy, const real* gamma, const real* statistics, const real* means, int n_pixels,
    int channels, int group_channels, int columns, int n_chunks, real* gx)
{
    differentiate<real, 1>(x, gy, gamma, statistics, means,
                           sizes{n_pixels, channels, group_channels, columns, n_chunks}, gx);
}

extern "C" __global__ void group_norm_gradient_4(
    const real* x, const real* gy, const real* gamma, const real* statistics, const real* means, int n_pixels,
    int channels, int group_channels, int columns, int n_chunks, real* gx)
{
    differentiate<real, 4>(x, gy, gamma, statistics, means,
                           sizes{n_pixels, channels, group_channels, columns, n_chunks}, gx);
}

extern "C" __global__ void group_norm_gradient_half_1(
    const unsigned short* x, const unsigned short* gy, const real* gamma, const real* statistics, const real* means,
    int n_pixels, int channels, int group_channels, int columns, int n_chunks, unsigned short* gx)
{
    differentiate<half_bits, 1>((const half_bits*)x, (const half_bits*)gy, gamma, statistics, means,
                                sizes{n_pixels, channels, group_channels, columns, n_chunks}, (half_bits*)gx);
}

extern "C" __global__ void group_norm_gradient_half_8(
    const unsigned short* x, const unsigned short* gy, const real* gamma, const real* statistics, const real* means,
    int n_pixels, int channels, int group_channels, int columns, int n_chunks, unsigned short* gx)
{
    differentiate<half_bits, 8>((const half_bits*)x, (const half_bits*)gy, gamma, statistics, means,
                                sizes{n_pixels, channels, group_channels, columns, n_chunks}, (half_bits*)gx);
}
