// Max pooling of images whose channels are innermost, (N, H, W, C); see mask_rcnn/ops/conv/max_pooling.py.

#ifndef REAL
#define REAL float
#endif

typedef REAL real;
typedef unsigned short half_bits;

#include "runtime/pack.cuh"

// No comparison is true for NaN.
__device__ bool is_larger(real a, real b)
{
    return a > b;
}

// An integer with the order of float16 numbers; zeros of both signs are equal.
__device__ int rank_of(half_bits half)
{
    return half >> 15 ? 0x8000 - (int)half : (int)half;
}

__device__ bool is_larger(half_bits a, half_bits b)
{
    return (a & 0x7fff) <= 0x7c00 && rank_of(a) > rank_of(b);
}

// Each thread computes LANES channels of an output pixel.  blockIdx.x is the index of an output row in the batch,
// blockIdx.y the index of a block in this row.
template <typename number, int LANES>
__device__ void pool(
    const number* x, int channels, int height, int width, int rows, int columns, int ksize, int stride, int pad,
    number lowest, number* y)
{
    typedef pack<number, LANES> lanes;
    const int groups = channels / LANES;
    const int index = (int)(blockIdx.y * blockDim.x + threadIdx.x);
    if (index >= columns * groups)
        return;
    const int top = (int)(blockIdx.x % rows) * stride - pad;
    const int left = index / groups * stride - pad;
    const lanes* image = (const lanes*)x + (long long)(blockIdx.x / rows) * height * width * groups + index % groups;
    lanes largest;
    for (int lane = 0; lane < LANES; ++lane)
        largest.value[lane] = lowest;
    for (int i = top < 0 ? 0 : top; i < top + ksize && i < height; ++i)
        for (int j = left < 0 ? 0 : left; j < left + ksize && j < width; ++j) {
            const lanes pixel = image[((long long)i * width + j) * groups];
            for (int lane = 0; lane < LANES; ++lane)
                if (is_larger(pixel.value[lane], largest.value[lane]))
                    largest.value[lane] = pixel.value[lane];
        }
    ((lanes*)y)[(long long)blockIdx.x * columns * groups + index] = largest;
}

extern "C" __global__ void max_pooling_1(
    const real* x, int channels, int height, int width, int rows, int columns, int ksize, int stride, int pad,
    real lowest, real* y)
{
    pool<real, 1>(x, channels, height, width, rows, columns, ksize, stride, pad, lowest, y);
}

extern "C" __global__ void max_pooling_4(
    const real* x, int channels, int height, int width, int rows, int columns, int ksize, int stride, int pad,
    real lowest, real* y)
{
    pool<real, 4>(x, channels, height, width, rows, columns, ksize, stride, pad, lowest, y);
}

extern "C" __global__ void max_pooling_half_1(
    const unsigned short* x, int channels, int height, int width, int rows, int columns, int ksize, int stride,
    int pad, unsigned short lowest, unsigned short* y)
{
    pool<half_bits, 1>(x, channels, height, width, rows, columns, ksize, stride, pad, lowest, y);
}

extern "C" __global__ void max_pooling_half_8(
    const unsigned short* x, int channels, int height, int width, int rows, int columns, int ksize, int stride,
    int pad, unsigned short lowest, unsigned short* y)
{
    pool<half_bits, 8>(x, channels, height, width, rows, columns, ksize, stride, pad, lowest, y);
}
