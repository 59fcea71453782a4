// Blocks of pixels as channels; see mask_rcnn/ops/cudnn_frontend/blocks.py.

typedef float real;

#include "runtime/half.cuh"

// y is (n_images, rows, columns, y_channels).  Channel (r * side + s) * channels + c of a block is channel c of its
// pixel (r, s); pixels outside of the image and further channels are 0.  The steps are between the elements of x.
template <typename source, typename target>
__device__ void make_blocks(
    const source* x, int channels, int height, int width, long long image_step, long long channel_step,
    long long row_step, long long column_step, int side, int rows, int columns, int y_channels, long long n, target* y)
{
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; index < n; index += (long long)gridDim.x * blockDim.x) {
        const int k = (int)(index % y_channels);
        const long long block = index / y_channels, block_row = block / columns;
        const int pixel = k / channels;
        const int i = (int)(block_row % rows) * side + pixel / side, j = (int)(block % columns) * side + pixel % side;
        const bool is_inside = pixel < side * side && i < height && j < width;
        const long long offset =
            block_row / rows * image_step + k % channels * channel_step + i * row_step + j * column_step;
        store(is_inside ? load(x[offset]) : 0.f, y[index]);
    }
}

extern "C" __global__ void blocks_float_float(
    const float* x, int channels, int height, int width, long long image_step, long long channel_step,
    long long row_step, long long column_step, int side, int rows, int columns, int y_channels, long long n, float* y)
{
    make_blocks(
        x, channels, height, width, image_step, channel_step, row_step, column_step, side, rows, columns, y_channels,
        n, y);
}

extern "C" __global__ void blocks_float_half(
    const float* x, int channels, int height, int width, long long image_step, long long channel_step,
    long long row_step, long long column_step, int side, int rows, int columns, int y_channels, long long n,
    unsigned short* y)
{
    make_blocks(
        x, channels, height, width, image_step, channel_step, row_step, column_step, side, rows, columns, y_channels,
        n, (half_bits*)y);
}

extern "C" __global__ void blocks_half_half(
    const unsigned short* x, int channels, int height, int width, long long image_step, long long channel_step,
    long long row_step, long long column_step, int side, int rows, int columns, int y_channels, long long n,
    unsigned short* y)
{
    make_blocks(
        (const half_bits*)x, channels, height, width, image_step, channel_step, row_step, column_step, side, rows,
        columns, y_channels, n, (half_bits*)y);
}
