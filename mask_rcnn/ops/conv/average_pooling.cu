// Global average pooling of images whose channels are innermost, (N, H, W, C); see mask_rcnn/ops/conv/average_pooling.py.

typedef float real;

#include "runtime/half.cuh"
#include "runtime/pack.cuh"

// Each thread computes LANES channels of an image.  Sums are float32, in the order of the pixels.
template <typename element, int LANES>
__device__ void average(const element* x, int n_images, int n_pixels, int channels, float* y)
{
    typedef pack<element, LANES> lanes;
    const int groups = channels / LANES;
    const long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (long long)n_images * groups)
        return;
    const lanes* pixels = (const lanes*)x + index / groups * n_pixels * groups + index % groups;
    pack<float, LANES> sums;
    for (int lane = 0; lane < LANES; ++lane)
        sums.value[lane] = 0.f;
#pragma unroll 7
    for (int i = 0; i < n_pixels; ++i) {
        const lanes pixel = pixels[(long long)i * groups];
        for (int lane = 0; lane < LANES; ++lane)
            sums.value[lane] += load(pixel.value[lane]);
    }
    for (int lane = 0; lane < LANES; ++lane)
        sums.value[lane] /= (float)n_pixels;
    ((pack<float, LANES>*)y)[index] = sums;
}

extern "C" __global__ void average_pooling_1(const float* x, int n_images, int n_pixels, int channels, float* y)
{
    average<float, 1>(x, n_images, n_pixels, channels, y);
}

extern "C" __global__ void average_pooling_4(const float* x, int n_images, int n_pixels, int channels, float* y)
{
    average<float, 4>(x, n_images, n_pixels, channels, y);
}

extern "C" __global__ void average_pooling_half_1(
    const unsigned short* x, int n_images, int n_pixels, int channels, float* y)
{
    average<half_bits, 1>((const half_bits*)x, n_images, n_pixels, channels, y);
}

extern "C" __global__ void average_pooling_half_8(
    const unsigned short* x, int n_images, int n_pixels, int channels, float* y)
{
    average<half_bits, 8>((const half_bits*)x, n_images, n_pixels, channels, y);
}
