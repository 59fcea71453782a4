// Depthwise 3x3 convolution, forward and backward; see mask_rcnn/ops/conv/depthwise.py.
//
// The channels of images, (N, H, W, C), and filters, (3, 3, C), are innermost, so that the threads of a warp read
// adjacent values.  top and left are the numbers of zeros above and left of an image; those below and right of it
// follow from the size of the output.

#ifndef REAL
#define REAL float
#endif

typedef REAL real;

// Each thread computes one output pixel of one channel.  blockIdx.x is the index of an output row in the batch,
// blockIdx.y the index of a block in this row.
extern "C" __global__ void depthwise_forward(
    const real* x, const real* w, int channels, int height, int width, int out_height, int out_width,
    int stride, int top, int left, real* y)
{
    const int index = (int)(blockIdx.y * blockDim.x + threadIdx.x);
    if (index >= out_width * channels)
        return;
    const int channel = index % channels;
    const int column = index / channels * stride - left;
    const int row = (int)(blockIdx.x % out_height) * stride - top;
    const real* image = x + (long long)(blockIdx.x / out_height) * height * width * channels + channel;
    real sum = 0;
    for (int i = 0; i < 3; ++i) {
        if (row + i < 0 || row + i >= height)
            continue;
        for (int j = 0; j < 3; ++j)
            if (column + j >= 0 && column + j < width)
                sum += w[(3 * i + j) * channels + channel]
                    * image[((long long)(row + i) * width + column + j) * channels];
    }
    y[(long long)blockIdx.x * out_width * channels + index] = sum;
}

// Each thread computes one pixel of the gradient of one channel: it gathers from all outputs whose window contains the
// pixel.  blockIdx.x is the index of an image row in the batch, blockIdx.y the index of a block in this row.
extern "C" __global__ void depthwise_grad_x(
    const real* gy, const real* w, int channels, int height, int width, int out_height, int out_width,
    int stride, int top, int left, real* gx)
{
    const int index = (int)(blockIdx.y * blockDim.x + threadIdx.x);
    if (index >= width * channels)
        return;
    const int channel = index % channels;
    const int column = index / channels + left;
    const int row = (int)(blockIdx.x % height) + top;
    const real* gradient = gy + (long long)(blockIdx.x / height) * out_height * out_width * channels + channel;
    real sum = 0;
    for (int i = 0; i < 3; ++i) {
        const int p = row - i;
        if (p < 0 || p % stride != 0 || p / stride >= out_height)
            continue;
        for (int j = 0; j < 3; ++j) {
            const int q = column - j;
            if (q >= 0 && q % stride == 0 && q / stride < out_width)
                sum += w[(3 * i + j) * channels + channel]
                    * gradient[((long long)(p / stride) * out_width + q / stride) * channels];
        }
    }
    gx[(long long)blockIdx.x * width * channels + index] = sum;
}

// A block of 256 threads sums the gradients of 32 filters, group blockIdx.x, over the output rows blockIdx.y,
// blockIdx.y + gridDim.y, ... of the batch: each of the eight warps sums every eighth pixel, then the block sums over
// the warps.  gw is (gridDim.y, 3, 3, C).  Without atomic operations the bits are the same in every run.
extern "C" __global__ void depthwise_grad_w(
    const real* x, const real* gy, int n_images, int channels, int height, int width, int out_height, int out_width,
    int stride, int top, int left, real* gw)
{
    __shared__ real warp_sums[9][8][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int channel = blockIdx.x * 32 + lane;
    real sums[9] = {0, 0, 0, 0, 0, 0, 0, 0, 0};
    for (int row = blockIdx.y; channel < channels && row < n_images * out_height; row += gridDim.y) {
        const real* gradient = gy + (long long)row * out_width * channels + channel;
        const real* image = x + (long long)(row / out_height) * height * width * channels + channel;
        const int p = row % out_height * stride - top;
        for (int column = warp; column < out_width; column += 8) {
            const real g = gradient[(long long)column * channels];
            const int q = column * stride - left;
            #pragma unroll
            for (int tap = 0; tap < 9; ++tap) {
                const int i = p + tap / 3, j = q + tap % 3;
                if (i >= 0 && i < height && j >= 0 && j < width)
                    sums[tap] += g * image[((long long)i * width + j) * channels];
            }
        }
    }
    #pragma unroll
    for (int tap = 0; tap < 9; ++tap)
        warp_sums[tap][warp][lane] = sums[tap];
    __syncthreads();
    for (int tap = warp; tap < 9 && channel < channels; tap += 8) {
        real sum = 0;
        for (int i = 0; i < 8; ++i)
            sum += warp_sums[tap][i][lane];
        gw[((long long)blockIdx.y * 9 + tap) * channels + channel] = sum;
    }
}
