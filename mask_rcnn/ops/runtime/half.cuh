// Conversion of float16, which kernels receive as bits, to and from "real", the type they compute in.  The source
// defines "real" before it includes this header.
struct half_bits { unsigned short bits; };

#ifdef __CUDACC__  // an emulator of CUDA provides these two functions
__device__ float half_to_float(unsigned short bits)
{
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ unsigned short float_to_half(float value)
{
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

__device__ real load(real stored) { return stored; }
__device__ real load(half_bits stored) { return half_to_float(stored.bits); }
__device__ void store(real value, real& target) { target = value; }
__device__ void store(real value, half_bits& target) { target.bits = float_to_half((float)value); }
