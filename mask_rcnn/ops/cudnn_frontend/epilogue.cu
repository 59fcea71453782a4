// The epilogue of a convolution, in place, on images whose channels are innermost, (N, H, W, C); see
// mask_rcnn/ops/cudnn_frontend/convolution.py.

typedef float real;

#include "runtime/half.cuh"
#include "runtime/pack.cuh"

// The remainder of 64-bit numbers is slow, so it is computed only where it is necessary.
__device__ int group_of(long long index, int groups)
{
    return index < 1ll << 32 ? (int)((unsigned int)index % (unsigned int)groups) : (int)(index % groups);
}

// Each thread computes LANES channels of a pixel at a time; n is the number of all elements.
template <typename element, int LANES>
__device__ void apply(
    element* y, const element* residual, bool has_residual, const float* bias, bool has_bias, float lowest,
    float highest, int channels, long long n)
{
    typedef pack<element, LANES> lanes;
    typedef pack<float, LANES> terms;
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; index < n / LANES; index += (long long)gridDim.x * blockDim.x) {
        lanes pixel = ((const lanes*)y)[index], added;
        terms offset;
        if (has_residual)
            added = ((const lanes*)residual)[index];
        if (has_bias)
            offset = ((const terms*)bias)[group_of(index, channels / LANES)];
        for (int lane = 0; lane < LANES; ++lane) {
            const float term = has_residual ? load(added.value[lane]) : 0.f;
            const float sum = load(pixel.value[lane]) + term + (has_bias ? offset.value[lane] : 0.f);
            store(sum < lowest ? lowest : sum > highest ? highest : sum, pixel.value[lane]);  // NaN stays NaN
        }
        ((lanes*)y)[index] = pixel;
    }
}

extern "C" __global__ void epilogue_1(
    float* y, const float* residual, int has_residual, const float* bias, int has_bias, float lowest, float highest,
    int channels, long long n)
{
    apply<float, 1>(y, residual, has_residual, bias, has_bias, lowest, highest, channels, n);
}

extern "C" __global__ void epilogue_4(
    float* y, const float* residual, int has_residual, const float* bias, int has_bias, float lowest, float highest,
    int channels, long long n)
{
    apply<float, 4>(y, residual, has_residual, bias, has_bias, lowest, highest, channels, n);
}

extern "C" __global__ void epilogue_half_1(
    unsigned short* y, const unsigned short* residual, int has_residual, const float* bias, int has_bias,
    float lowest, float highest, int channels, long long n)
{
    apply<half_bits, 1>(
        (half_bits*)y, (const half_bits*)residual, has_residual, bias, has_bias, lowest, highest, channels, n);
}

extern "C" __global__ void epilogue_half_8(
    unsigned short* y, const unsigned short* residual, int has_residual, const float* bias, int has_bias,
    float lowest, float highest, int channels, long long n)
{
    apply<half_bits, 8>(
        (half_bits*)y, (const half_bits*)residual, has_residual, bias, has_bias, lowest, highest, channels, n);
}
