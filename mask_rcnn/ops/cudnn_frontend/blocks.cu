// Blocks of pixels of RGB images as channels; see mask_rcnn/ops/cudnn_frontend/blocks.py.

typedef float real;

#include "runtime/half.cuh"
#include "runtime/pack.cuh"

#define IMAGE_CHANNELS 3
#define SIDE 2  // of a block

template <typename source>
struct image {
    const source* first;
    int height, width;
    long long channel_step, row_step, column_step;  // in elements
};

// Channel (r * SIDE + s) * IMAGE_CHANNELS + c of a block is channel c of its pixel (r, s).  Pixels outside of the image
// and further channels are 0.
template <int CHANNELS, typename source, typename target>
__device__ void make_block(const image<source>& x, int row, int column, long long index, target* y)
{
    pack<target, CHANNELS> block;
    for (int k = 0; k < CHANNELS; ++k)
        store(0.f, block.value[k]);
#pragma unroll
    for (int pixel = 0; pixel < SIDE * SIDE; ++pixel) {
        const int i = row * SIDE + pixel / SIDE, j = column * SIDE + pixel % SIDE;
        if (i >= x.height || j >= x.width)
            continue;
#pragma unroll
        for (int c = 0; c < IMAGE_CHANNELS; ++c) {
            const source value = x.first[c * x.channel_step + i * x.row_step + j * x.column_step];
            store(load(value), block.value[pixel * IMAGE_CHANNELS + c]);
        }
    }
    ((pack<target, CHANNELS>*)y)[index] = block;
}

// Each thread makes one block.  blockIdx.x is the index of a row of blocks in the batch, blockIdx.y that of a part of
// this row.
template <typename source, typename target>
__device__ void make_blocks(
    image<source> x, long long image_step, int rows, int columns, int channels, target* y)
{
    const int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= columns)
        return;
    const int row = blockIdx.x % rows;
    const long long index = (long long)blockIdx.x * columns + column;
    x.first += blockIdx.x / rows * image_step;
    if (channels == 12)
        make_block<12>(x, row, column, index, y);
    else
        make_block<16>(x, row, column, index, y);
}

extern "C" __global__ void blocks_float_float(
    const float* x, int height, int width, long long image_step, long long channel_step, long long row_step,
    long long column_step, int rows, int columns, int channels, float* y)
{
    const image<float> source = {x, height, width, channel_step, row_step, column_step};
    make_blocks(source, image_step, rows, columns, channels, y);
}

extern "C" __global__ void blocks_float_half(
    const float* x, int height, int width, long long image_step, long long channel_step, long long row_step,
    long long column_step, int rows, int columns, int channels, unsigned short* y)
{
    const image<float> source = {x, height, width, channel_step, row_step, column_step};
    make_blocks(source, image_step, rows, columns, channels, (half_bits*)y);
}

extern "C" __global__ void blocks_half_half(
    const unsigned short* x, int height, int width, long long image_step, long long channel_step, long long row_step,
    long long column_step, int rows, int columns, int channels, unsigned short* y)
{
    const image<half_bits> source = {(const half_bits*)x, height, width, channel_step, row_step, column_step};
    make_blocks(source, image_step, rows, columns, channels, (half_bits*)y);
}
