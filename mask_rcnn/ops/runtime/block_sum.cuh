// Sum the values of all threads of a block, whose number is a power of two; the result is valid in all threads.
// "sums" is shared memory with a value per thread.
__device__ double block_sum(double value, double* sums)
{
    const int thread = threadIdx.x;
    sums[thread] = value;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (thread < half)
            sums[thread] += sums[thread + half];
        __syncthreads();
    }
    return sums[0];
}
