// Hashes of arrays; see mask_rcnn/ops/runtime/weight_cache.py.

#define THREADS 256

typedef unsigned long long word;  // an address or a hash

// The finalizer of SplitMix64 (Steele et al. 2014), a bijection.
__device__ word mix(word z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

// One block per segment of elements of four bytes: the sum of mix(position, element).
extern "C" __global__ void hash_segments(const word* addresses, const int* sizes, word* hashes)
{
    __shared__ word sums[THREADS];
    const int thread = threadIdx.x, size = sizes[blockIdx.x];
    const unsigned int* elements = (const unsigned int*)addresses[blockIdx.x];
    word sum = 0;
    for (int i = thread; i < size; i += THREADS)
        sum += mix((word)i << 32 | elements[i]);
    sums[thread] = sum;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (thread < half)
            sums[thread] += sums[thread + half];
        __syncthreads();
    }
    if (thread == 0)
        hashes[blockIdx.x] = sums[0];
}
