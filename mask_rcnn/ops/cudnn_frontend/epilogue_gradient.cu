// The gradient of a convolution's epilogue on images whose channels are innermost, (N, H, W, C); see
// mask_rcnn/ops/cudnn_frontend/epilogue_gradient.py.

typedef float real;

#include "runtime/half.cuh"
#include "runtime/pack.cuh"

const int THREADS = 256;  // of a block that sums; _THREADS of epilogue_gradient.py
const int LOADS = 4;  // that a thread issues before it uses the first of them

// Multiply gradients by the derivative of ReLU, whose results are y.  An infinite gradient becomes NaN where the
// derivative is 0, so that an overflow of float16 remains visible.
template <typename element, int LANES>
__device__ void multiply_by_derivative(const pack<element, LANES>& y, pack<element, LANES>& g)
{
    for (int lane = 0; lane < LANES; ++lane)
        store(load(g.value[lane]) * (load(y.value[lane]) > 0.f ? 1.f : 0.f), g.value[lane]);
}

// Each thread computes LANES elements at a time; n is the number of all elements.
template <typename element, int LANES>
__device__ void differentiate_relu(
    const element* __restrict__ gy, const element* __restrict__ y, long long n, element* __restrict__ g)
{
    typedef pack<element, LANES> lanes;
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; index < n / LANES; index += (long long)gridDim.x * blockDim.x) {
        lanes gradient = ((const lanes*)gy)[index];
        const lanes output = ((const lanes*)y)[index];  // a reference to memory would be read lane by lane
        multiply_by_derivative<element, LANES>(output, gradient);
        ((lanes*)g)[index] = gradient;
    }
}

// Return the sums of a thread over every step-th pixel in its group of channels, from `pixel` on, in `sum`.  With ReLU
// they are the sums of the gradients before it, which are written to g.
template <typename element, int LANES, bool HAS_RELU>
__device__ void sum_thread(
    const element* __restrict__ gy, const element* __restrict__ y, long long pixel, long long step, long long n_pixels,
    int group, int groups, element* __restrict__ g, float (&sum)[LANES])
{
    typedef pack<element, LANES> lanes;
    for (; pixel < n_pixels; pixel += LOADS * step) {
        lanes gradient[LOADS], output[LOADS];
#pragma unroll
        for (int k = 0; k < LOADS; ++k)
            if (pixel + k * step < n_pixels) {
                gradient[k] = ((const lanes*)gy)[(pixel + k * step) * groups + group];
                if (HAS_RELU)
                    output[k] = ((const lanes*)y)[(pixel + k * step) * groups + group];
            }
#pragma unroll
        for (int k = 0; k < LOADS; ++k)
            if (pixel + k * step < n_pixels) {
                if (HAS_RELU) {
                    multiply_by_derivative<element, LANES>(output[k], gradient[k]);
                    ((lanes*)g)[(pixel + k * step) * groups + group] = gradient[k];
                }
                for (int lane = 0; lane < LANES; ++lane)
                    sum[lane] += load(gradient[k].value[lane]);
            }
    }
}

// Sum over pixels.  A block sums `columns` groups of channels, a power of two, starting with group
// blockIdx.x * columns, over the pixels of its threads: a row of `columns` threads sums every
// (gridDim.y * rows of a block)-th pixel.  The order of the additions is fixed.  sums: (gridDim.y, C).
template <typename element, int LANES, bool HAS_RELU>
__device__ void sum_block(
    const element* gy, const element* y, long long n_pixels, int channels, int columns, element* g,
    float (*thread_sums)[THREADS], float* sums)
{
    const int thread = threadIdx.x, rows = THREADS / columns;
    const int groups = channels / LANES, group = blockIdx.x * columns + thread % columns;
    float sum[LANES] = {};
    if (group < groups)
        sum_thread<element, LANES, HAS_RELU>(
            gy, y, (long long)blockIdx.y * rows + thread / columns, (long long)gridDim.y * rows, n_pixels, group,
            groups, g, sum);
    for (int lane = 0; lane < LANES; ++lane)
        thread_sums[lane][thread] = sum[lane];
    for (int half = THREADS / 2; half >= columns; half /= 2) {
        __syncthreads();
        if (thread < half)
            for (int lane = 0; lane < LANES; ++lane)
                thread_sums[lane][thread] += thread_sums[lane][thread + half];
    }
    if (thread < columns && group < groups)
        for (int lane = 0; lane < LANES; ++lane)
            sums[(long long)blockIdx.y * channels + group * LANES + lane] = thread_sums[lane][thread];
}

template <typename element, int LANES>
__device__ void sum_pixels(
    const element* gy, const element* y, bool has_relu, long long n_pixels, int channels, int columns, element* g,
    float* sums)
{
    __shared__ float thread_sums[LANES][THREADS];
    if (has_relu)
        sum_block<element, LANES, true>(gy, y, n_pixels, channels, columns, g, thread_sums, sums);
    else
        sum_block<element, LANES, false>(gy, y, n_pixels, channels, columns, g, thread_sums, sums);
}

extern "C" __global__ void relu_gradient_1(const float* gy, const float* y, long long n, float* g)
{
    differentiate_relu<float, 1>(gy, y, n, g);
}

extern "C" __global__ void relu_gradient_4(const float* gy, const float* y, long long n, float* g)
{
    differentiate_relu<float, 4>(gy, y, n, g);
}

extern "C" __global__ void relu_gradient_half_1(
    const unsigned short* gy, const unsigned short* y, long long n, unsigned short* g)
{
    differentiate_relu<half_bits, 1>((const half_bits*)gy, (const half_bits*)y, n, (half_bits*)g);
}

extern "C" __global__ void relu_gradient_half_8(
    const unsigned short* gy, const unsigned short* y, long long n, unsigned short* g)
{
    differentiate_relu<half_bits, 8>((const half_bits*)gy, (const half_bits*)y, n, (half_bits*)g);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) sum_pixels_1(
    const float* gy, const float* y, int has_relu, long long n_pixels, int channels, int columns, float* g, float* sums)
{
    sum_pixels<float, 1>(gy, y, has_relu != 0, n_pixels, channels, columns, g, sums);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) sum_pixels_4(
    const float* gy, const float* y, int has_relu, long long n_pixels, int channels, int columns, float* g, float* sums)
{
    sum_pixels<float, 4>(gy, y, has_relu != 0, n_pixels, channels, columns, g, sums);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) sum_pixels_half_1(
    const unsigned short* gy, const unsigned short* y, int has_relu, long long n_pixels, int channels, int columns,
    unsigned short* g, float* sums)
{
    sum_pixels<half_bits, 1>((const half_bits*)gy, (const half_bits*)y, has_relu != 0, n_pixels, channels, columns,
                             (half_bits*)g, sums);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) sum_pixels_half_8(
    const unsigned short* gy, const unsigned short* y, int has_relu, long long n_pixels, int channels, int columns,
    unsigned short* g, float* sums)
{
    sum_pixels<half_bits, 8>((const half_bits*)gy, (const half_bits*)y, has_relu != 0, n_pixels, channels, columns,
                             (half_bits*)g, sums);
}
