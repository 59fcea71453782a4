// The k largest of n scores, in falling order, the first of equal ones first; see mask_rcnn/ops/top_k.py.
//
// Radix selection: the score of the k-th is found digit by digit, 11, 11 and 10 bits, each from the numbers of
// scores that have the digits before it and each value of this one.  top_k_count counts, once for each digit;
// top_k_collect lists the chosen; top_k_sort sorts them.  Blocks have 256 threads and look at 1024 scores that
// lie side by side, except in top_k_sort.

typedef unsigned long long key;

const int threads = 256;
const int scores_of_block = 1024;
const int values = 2048;       // of a digit
const int last_values = 1024;  // of the last one

// A number that orders as the scores do, 0 and -0 as equals.
__device__ unsigned int rank_of(float score)
{
    union { float value; unsigned int bits; } number;
    number.value = score + 0.0f;  // 0 for -0
    return number.bits >> 31 ? ~number.bits : number.bits | 0x80000000u;
}

// What the threads up to this one have, together.
__device__ int sum_up_to(int own)
{
    __shared__ int sums[2][threads];
    const int me = threadIdx.x;
    int side = 0;
    sums[0][me] = own;
    for (int step = 1; step < threads; step *= 2) {
        __syncthreads();
        own = sums[side][me] + (me >= step ? sums[side][me - step] : 0);
        side = 1 - side;
        sums[side][me] = own;
    }
    return own;
}

// The first digits of the k-th largest score, and how many of the scores that have them are among the k.
struct prefix_of {
    unsigned int found;
    int wanted;
};

// Find the digits that were counted; every thread of a block gets them.
__device__ prefix_of find_digits(const int* counts, int digits, int k)
{
    __shared__ prefix_of shared;
    prefix_of prefix = {0, k};
    for (int digit = 0; digit < digits; ++digit, counts += values) {
        const int per_thread = values / threads;
        const int highest = values - 1 - (int)threadIdx.x * per_thread;
        int own = 0;
        for (int i = 0; i < per_thread; ++i)
            own += counts[highest - i];
        int above = sum_up_to(own) - own;
        if (above < prefix.wanted && prefix.wanted <= above + own) {  // one thread
            int value = highest;
            for (; above + counts[value] < prefix.wanted; --value)
                above += counts[value];
            shared.found = prefix.found << (digit < 2 ? 11 : 10) | (unsigned int)value;
            shared.wanted = prefix.wanted - above;
        }
        __syncthreads();
        prefix = shared;
    }
    return prefix;
}

// Count the values of one digit (0 to 2): in `counts` those of all scores that have the digits before it, for the
// last digit also block by block.  `counts` is zero before the first digit.
extern "C" __global__ void top_k_count(
    const float* scores, int n, int k, int digit, int* counts, int* counts_of_blocks)
{
    __shared__ int own[values];
    const int me = threadIdx.x;
    for (int value = me; value < values; value += threads)
        own[value] = 0;
    const unsigned int found = find_digits(counts, digit, k).found;
    const int shift = digit == 0 ? 21 : digit == 1 ? 10 : 0;
    const int above = digit < 2 ? shift + 11 : 10;
    __syncthreads();
    for (int i = me; i < scores_of_block; i += threads) {
        const long long index = (long long)blockIdx.x * scores_of_block + i;
        if (index >= n)
            break;
        const unsigned int rank = rank_of(scores[index]);
        if ((unsigned long long)rank >> above == found)
            atomicAdd(&own[rank >> shift & (digit < 2 ? values - 1 : last_values - 1)], 1);
    }
    __syncthreads();
    for (int value = me; value < values; value += threads) {
        if (own[value] > 0)
            atomicAdd(&counts[digit * values + value], own[value]);
        if (digit == 2 && value < last_values)
            counts_of_blocks[(long long)blockIdx.x * last_values + value] = own[value];
    }
}

// List the indices of the scores above the k-th largest, in no particular order, then those of the first ones
// that equal it.  `n_above` is zero on entry.
extern "C" __global__ void top_k_collect(
    const float* scores, int n, int k, const int* counts, const int* counts_of_blocks, int* n_above, int* chosen)
{
    __shared__ int start, equal_before;
    const int me = threadIdx.x;
    const prefix_of prefix = find_digits(counts, 3, k);
    if (me == 0)
        equal_before = 0;
    __syncthreads();
    int before = 0;
    for (int block = me; block < (int)blockIdx.x; block += threads)
        before += counts_of_blocks[(long long)block * last_values + prefix.found % last_values];
    if (before > 0)
        atomicAdd(&equal_before, before);

    const int per_thread = scores_of_block / threads;
    const long long first = (long long)blockIdx.x * scores_of_block + me * per_thread;
    int above = 0, equal = 0;
    for (int i = 0; i < per_thread && first + i < n; ++i) {
        const unsigned int rank = rank_of(scores[first + i]);
        above += rank > prefix.found;
        equal += rank == prefix.found;
    }
    const int above_so_far = sum_up_to(above);
    int equal_place = sum_up_to(equal) - equal;
    if (me == threads - 1)
        start = atomicAdd(n_above, above_so_far);
    __syncthreads();
    int place = start + above_so_far - above;
    equal_place += equal_before;
    for (int i = 0; i < per_thread && first + i < n; ++i) {
        const unsigned int rank = rank_of(scores[first + i]);
        if (rank > prefix.found)
            chosen[place++] = (int)(first + i);
        else if (rank == prefix.found && equal_place++ < prefix.wanted)
            chosen[k - prefix.wanted + equal_place - 1] = (int)(first + i);
    }
}

// A number that orders as (score rising, index falling) does, so that no two are equal, and none is 0.
__device__ key key_of(const float* scores, int index)
{
    return (key)rank_of(scores[index]) << 32 | (0xffffffffu - (unsigned int)index);
}

// List the k best of n scores, those that were chosen, or of all: the keys above a score's own are its place.  A
// block places 32 of them; each warp looks at an eighth of the keys.
extern "C" __global__ void top_k_sort(
    const float* scores, const int* chosen, int is_chosen, int n, int k, int* order)
{
    __shared__ key keys[threads];
    __shared__ int places[32];
    const int me = threadIdx.x, lane = me % 32, part = me / 32;
    const int mine = blockIdx.x * 32 + lane;
    const int index = mine >= n ? -1 : is_chosen ? chosen[mine] : mine;
    const key own = index < 0 ? 0 : key_of(scores, index);
    if (part == 0)
        places[lane] = 0;
    int place = 0;
    for (int first = 0; first < n; first += threads) {
        const int other = first + me;
        __syncthreads();
        keys[me] = other >= n ? 0 : key_of(scores, is_chosen ? chosen[other] : other);
        __syncthreads();
        for (int i = 0; i < 32; ++i)
            place += keys[32 * part + i] > own;
    }
    atomicAdd(&places[lane], place);
    __syncthreads();
    if (part == 0 && index >= 0 && places[lane] < k)
        order[places[lane]] = index;
}
