// Conversion between float and the bits of bfloat16, the upper half of a float; see
// mask_rcnn/ops/cudnn_frontend/convolution.py.

union float_bits { float value; unsigned int bits; };

// Round to nearest, ties to even, like the conversion of the hardware; NaN stays NaN.
extern "C" __global__ void float_to_bfloat16(const float* x, long long n, unsigned short* y)
{
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; index < n; index += (long long)gridDim.x * blockDim.x) {
        float_bits number;
        number.value = x[index];
        const bool is_nan = (number.bits & 0x7fffffffu) > 0x7f800000u;
        const unsigned int rounded = number.bits + 0x7fffu + (number.bits >> 16 & 1u);
        y[index] = (unsigned short)(is_nan ? number.bits >> 16 | 0x40u : rounded >> 16);
    }
}

extern "C" __global__ void bfloat16_to_float(const unsigned short* x, long long n, float* y)
{
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; index < n; index += (long long)gridDim.x * blockDim.x) {
        float_bits number;
        number.bits = (unsigned int)x[index] << 16;
        y[index] = number.value;
    }
}
