// The k largest of n scores, in falling order, the first of equal ones first; see mask_rcnn/ops/top_k.py.

// A number that orders as (score rising, index falling) does, so that no two are equal.
__device__ unsigned long long key_of(const float* scores, int index)
{
    union { float value; unsigned int bits; } score;
    score.value = scores[index] + 0.0f;  // 0 for -0
    const unsigned int ordered = score.bits >> 31 ? ~score.bits : score.bits | 0x80000000u;
    return (unsigned long long)ordered << 32 | (0xffffffffu - (unsigned int)index);
}

// One block finds the k-th largest key, 8 bits after the other, from the numbers of keys that have each value
// of them, and then lists the indices of all keys from that one on, in no particular order.  1 <= k <= n.
extern "C" __global__ void top_k_select(const float* scores, int n, int k, int* chosen)
{
    __shared__ int counts[256];
    __shared__ unsigned long long found;  // the upper bits of the k-th largest key
    __shared__ int wanted;  // how many of the keys with these bits are among the k largest
    __shared__ int n_chosen;
    const int me = threadIdx.x;
    if (me == 0) {
        found = 0;
        wanted = k;
        n_chosen = 0;
    }
    for (int shift = 56; shift >= 0; shift -= 8) {
        for (int digit = me; digit < 256; digit += blockDim.x)
            counts[digit] = 0;
        __syncthreads();
        for (int i = me; i < n; i += blockDim.x) {
            const unsigned long long key = key_of(scores, i);
            if (shift == 56 || key >> (shift + 8) == found)
                atomicAdd(&counts[(int)(key >> shift & 255)], 1);
        }
        __syncthreads();
        if (me == 0) {
            int digit = 255;
            for (; counts[digit] < wanted; --digit)
                wanted -= counts[digit];
            found = found << 8 | (unsigned long long)digit;
        }
        __syncthreads();
    }
    for (int i = me; i < n; i += blockDim.x)
        if (key_of(scores, i) >= found)
            chosen[atomicAdd(&n_chosen, 1)] = i;
}

// Every thread counts the keys above its own: that is its place.
extern "C" __global__ void top_k_sort(const float* scores, const int* chosen, int k, int* order)
{
    __shared__ unsigned long long keys[256];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned long long own = i < k ? key_of(scores, chosen[i]) : 0;
    int place = 0;
    for (int first = 0; first < k; first += blockDim.x) {
        __syncthreads();
        if (first + (int)threadIdx.x < k)
            keys[threadIdx.x] = key_of(scores, chosen[first + threadIdx.x]);
        __syncthreads();
        const int size = k - first < (int)blockDim.x ? k - first : (int)blockDim.x;
        for (int j = 0; j < size; ++j)
            place += keys[j] > own;
    }
    if (i < k)
        order[place] = chosen[i];
}
