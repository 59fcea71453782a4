// Depthwise 3x3 convolution, forward and backward; see mask_rcnn/ops/depthwise_convolution.py.
//
// Images are (N, C, H, W), filters (C, 3, 3).  top and left are the zeros above and left of an image; those
// below and right of it follow from the output's size.

#ifndef REAL
#define REAL float
#endif

typedef REAL real;

// One thread computes one pixel of one channel.
extern "C" __global__ void depthwise_forward(
    const real* x, const real* w, long long n, int channels, int height, int width,
    int out_height, int out_width, int stride, int top, int left, real* y)
{
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; index < n; index += (long long)gridDim.x * blockDim.x) {
        const int column = (int)(index % out_width) * stride - left;
        const int row = (int)(index / out_width % out_height) * stride - top;
        const long long map = index / out_width / out_height;
        const real* image = x + map * height * width;
        const real* filter = w + map % channels * 9;
        real sum = 0;
        for (int i = 0; i < 3; ++i) {
            if (row + i < 0 || row + i >= height)
                continue;
            for (int j = 0; j < 3; ++j)
                if (column + j >= 0 && column + j < width)
                    sum += filter[3 * i + j] * image[(long long)(row + i) * width + column + j];
        }
        y[index] = sum;
    }
}

// One thread owns one pixel of the images' gradient and gathers what the outputs that saw it send back.
extern "C" __global__ void depthwise_grad_x(
    const real* gy, const real* w, long long n, int channels, int height, int width,
    int out_height, int out_width, int stride, int top, int left, real* gx)
{
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; index < n; index += (long long)gridDim.x * blockDim.x) {
        const int column = (int)(index % width) + left;
        const int row = (int)(index / width % height) + top;
        const long long map = index / width / height;
        const real* gradient = gy + map * out_height * out_width;
        const real* filter = w + map % channels * 9;
        real sum = 0;
        for (int i = 0; i < 3; ++i) {
            const int p = row - i;
            if (p < 0 || p % stride != 0 || p / stride >= out_height)
                continue;
            for (int j = 0; j < 3; ++j) {
                const int q = column - j;
                if (q >= 0 && q % stride == 0 && q / stride < out_width)
                    sum += filter[3 * i + j] * gradient[(long long)(p / stride) * out_width + q / stride];
            }
        }
        gx[index] = sum;
    }
}

// One block of 256 threads owns one number of the filters' gradient: every thread adds up its share of the
// images in their order, then the shares are added up pairwise.  No atomic operation, the same bits in every
// run.
extern "C" __global__ void depthwise_grad_w(
    const real* x, const real* gy, int n_images, int channels, int height, int width,
    int out_height, int out_width, int stride, int top, int left, real* gw)
{
    __shared__ real shares[256];
    const int channel = blockIdx.x / 9;
    const int i = blockIdx.x % 9 / 3;
    const int j = blockIdx.x % 3;
    const long long pixels = (long long)out_height * out_width;
    real sum = 0;
    for (long long index = threadIdx.x; index < pixels * n_images; index += blockDim.x) {
        const long long map = index / pixels * channels + channel;
        const int row = (int)(index % pixels / out_width);
        const int column = (int)(index % out_width);
        const int p = row * stride - top + i;
        const int q = column * stride - left + j;
        if (p >= 0 && p < height && q >= 0 && q < width)
            sum += gy[map * pixels + (long long)row * out_width + column]
                * x[(map * height + p) * width + q];
    }
    shares[threadIdx.x] = sum;
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (threadIdx.x < half)
            shares[threadIdx.x] += shares[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0)
        gw[blockIdx.x] = shares[0];
}
