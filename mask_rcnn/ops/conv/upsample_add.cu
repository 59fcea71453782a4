// Nearest-neighbour 2x upsampling and addition of images whose channels are innermost, (N, H, W, C); see
// mask_rcnn/ops/conv/upsample_add.py.

typedef float real;

#include "runtime/half.cuh"
#include "runtime/pack.cuh"

// Each thread computes LANES channels of a pixel.  blockIdx.x is the index of a row in the batch, blockIdx.y the index
// of a block in this row.  y may be x.
template <typename element, int LANES>
__device__ void add(const element* x, const element* coarse, int channels, int width, element* y)
{
    typedef pack<element, LANES> lanes;
    const int groups = channels / LANES;
    const int index = (int)(blockIdx.y * blockDim.x + threadIdx.x);
    if (index >= width * groups)
        return;
    const long long target = (long long)blockIdx.x * width * groups + index;
    const int column = index / groups / 2;
    // A batch has twice as many rows as the coarse batch, so that row i belongs to the coarse row i / 2.
    const long long source = ((long long)(blockIdx.x / 2) * (width / 2) + column) * groups + index % groups;
    lanes sum = ((const lanes*)x)[target];
    const lanes term = ((const lanes*)coarse)[source];
    for (int lane = 0; lane < LANES; ++lane)
        store(load(sum.value[lane]) + load(term.value[lane]), sum.value[lane]);
    ((lanes*)y)[target] = sum;
}

extern "C" __global__ void upsample_add_1(const float* x, const float* coarse, int channels, int width, float* y)
{
    add<float, 1>(x, coarse, channels, width, y);
}

extern "C" __global__ void upsample_add_4(const float* x, const float* coarse, int channels, int width, float* y)
{
    add<float, 4>(x, coarse, channels, width, y);
}

extern "C" __global__ void upsample_add_half_1(
    const unsigned short* x, const unsigned short* coarse, int channels, int width, unsigned short* y)
{
    add<half_bits, 1>((const half_bits*)x, (const half_bits*)coarse, channels, width, (half_bits*)y);
}

extern "C" __global__ void upsample_add_half_8(
    const unsigned short* x, const unsigned short* coarse, int channels, int width, unsigned short* y)
{
    add<half_bits, 8>((const half_bits*)x, (const half_bits*)coarse, channels, width, (half_bits*)y);
}
