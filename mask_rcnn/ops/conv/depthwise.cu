// Depthwise 3x3 convolution, forward and backward; see mask_rcnn/ops/depthwise_convolution.py.
//
// Images have their channels innermost, (N, H, W, C), as have filters, (3, 3, C): the threads of a warp read
// neighbours in memory.  top and left are the zeros above and left of an image; those below and right of it
// follow from the output's size.

#ifndef REAL
#define REAL float
#endif

typedef REAL real;

// One thread computes one pixel of one channel: blockIdx.x counts the rows of all images' results, blockIdx.y the
// parts of a row that a block's threads take.
extern "C" __global__ void depthwise_forward(
    const real* x, const real* w, int channels, int height, int width, int out_height, int out_width,
    int stride, int top, int left, real* y)
{
    const int place = (int)(blockIdx.y * blockDim.x + threadIdx.x);
    if (place >= out_width * channels)
        return;
    const int channel = place % channels;
    const int column = place / channels * stride - left;
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
    y[(long long)blockIdx.x * out_width * channels + place] = sum;
}

// One thread owns one pixel of the images' gradient and gathers what the outputs that saw it send back; blocks as
// above, but of the images.
extern "C" __global__ void depthwise_grad_x(
    const real* gy, const real* w, int channels, int height, int width, int out_height, int out_width,
    int stride, int top, int left, real* gx)
{
    const int place = (int)(blockIdx.y * blockDim.x + threadIdx.x);
    if (place >= width * channels)
        return;
    const int channel = place % channels;
    const int column = place / channels + left;
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
    gx[(long long)blockIdx.x * width * channels + place] = sum;
}

// A block of 256 threads adds up the gradients of 32 filters, those of group blockIdx.x, over every gridDim.y-th row
// of all outputs, from row blockIdx.y on: each warp at every eighth pixel, then over the warps.  gw is (gridDim.y, 3,
// 3, C).  No atomic operation, the same bits in every run.
extern "C" __global__ void depthwise_grad_w(
    const real* x, const real* gy, int n_images, int channels, int height, int width, int out_height, int out_width,
    int stride, int top, int left, real* gw)
{
    __shared__ real shares[9][8][32];
    const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
    const int channel = blockIdx.x * 32 + lane;
    real sums[9] = {0, 0, 0, 0, 0, 0, 0, 0, 0};
    for (int row = blockIdx.y; channel < channels && row < n_images * out_height; row += gridDim.y) {
        const real* gradient = gy + (long long)row * out_width * channels + channel;
        const real* image = x + (long long)(row / out_height) * height * width * channels + channel;
        const int p = row % out_height * stride - top;
        for (int column = part; column < out_width; column += 8) {
            const real sent = gradient[(long long)column * channels];
            const int q = column * stride - left;
            #pragma unroll
            for (int tap = 0; tap < 9; ++tap) {
                const int i = p + tap / 3, j = q + tap % 3;
                if (i >= 0 && i < height && j >= 0 && j < width)
                    sums[tap] += sent * image[((long long)i * width + j) * channels];
            }
        }
    }
    #pragma unroll
    for (int tap = 0; tap < 9; ++tap)
        shares[tap][part][lane] = sums[tap];
    __syncthreads();
    for (int tap = part; tap < 9 && channel < channels; tap += 8) {
        real sum = 0;
        for (int other = 0; other < 8; ++other)
            sum += shares[tap][other][lane];
        gw[((long long)blockIdx.y * 9 + tap) * channels + channel] = sum;
    }
}
