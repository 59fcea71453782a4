// float16 by its bits, as which kernels get it, calculated in "real"; a source defines that before it includes this.
struct half_bits { unsigned short bits; };

#ifdef __CUDACC__  // elsewhere whoever emulates CUDA brings these two
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
__device__ void store(real value, real& place) { place = value; }
__device__ void store(real value, half_bits& place) { place.bits = float_to_half((float)value); }
