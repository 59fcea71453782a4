// The k largest of n scores in descending order, ties in the order of the input; see mask_rcnn/ops/boxes/top_k.py.
//
// Radix selection: the k-th largest score is found digit by digit (11, 11 and 10 bits).  For each digit, its values are
// counted among the scores that match the digits found before.  top_k_count runs once for each digit, top_k_collect
// lists the selected scores, and top_k_sort sorts them.  Blocks have 256 threads; a block of top_k_count or
// top_k_collect processes 1024 consecutive scores.

typedef unsigned long long key;

const int THREADS = 256;
const int SCORES_PER_BLOCK = 1024;
const int VALUES = 2048;       // of a digit
const int LAST_VALUES = 1024;  // of the last digit

// An unsigned integer with the order of the scores; 0 and -0 are equal, and NaN is the lowest.
__device__ unsigned int rank_of(float score)
{
    if (score != score)
        return 0;
    union { float value; unsigned int bits; } number;
    number.value = score + 0.0f;  // 0 for -0
    return number.bits >> 31 ? ~number.bits : number.bits | 0x80000000u;
}

// Inclusive prefix sum over the threads of a block (Hillis and Steele).
__device__ int inclusive_scan(int value)
{
    __shared__ int sums[2][THREADS];
    const int thread = threadIdx.x;
    int buffer = 0;
    sums[0][thread] = value;
    for (int step = 1; step < THREADS; step *= 2) {
        __syncthreads();
        value = sums[buffer][thread] + (thread >= step ? sums[buffer][thread - step] : 0);
        buffer = 1 - buffer;
        sums[buffer][thread] = value;
    }
    return value;
}

// The leading digits of the k-th largest score, and the number of scores with these digits among the k largest.
struct score_prefix {
    unsigned int digits;
    int n_selected;
};

// Find the first `n_digits` digits, whose values are counted; every thread of a block returns them.
__device__ score_prefix find_digits(const int* counts, int n_digits, int k)
{
    __shared__ score_prefix shared;
    score_prefix prefix = {0, k};
    for (int digit = 0; digit < n_digits; ++digit, counts += VALUES) {
        const int per_thread = VALUES / THREADS;
        const int highest = VALUES - 1 - (int)threadIdx.x * per_thread;
        int count = 0;
        for (int i = 0; i < per_thread; ++i)
            count += counts[highest - i];
        int above = inclusive_scan(count) - count;
        if (above < prefix.n_selected && prefix.n_selected <= above + count) {  // true for one thread
            int value = highest;
            for (; above + counts[value] < prefix.n_selected; --value)
                above += counts[value];
            shared.digits = prefix.digits << (digit < 2 ? 11 : 10) | (unsigned int)value;
            shared.n_selected = prefix.n_selected - above;
        }
        __syncthreads();
        prefix = shared;
    }
    return prefix;
}

// Count the values of one digit (0 to 2) among the scores with the digits before it: in `counts` for all scores, and
// for the last digit also per block.  `counts` must be zero before the first digit.
extern "C" __global__ void top_k_count(
    const float* scores, int n, int k, int digit, int* counts, int* block_counts)
{
    __shared__ int histogram[VALUES];
    const int thread = threadIdx.x;
    for (int value = thread; value < VALUES; value += THREADS)
        histogram[value] = 0;
    const unsigned int prefix = find_digits(counts, digit, k).digits;
    const int shift = digit == 0 ? 21 : digit == 1 ? 10 : 0;
    const int prefix_shift = digit < 2 ? shift + 11 : 10;
    __syncthreads();
    for (int i = thread; i < SCORES_PER_BLOCK; i += THREADS) {
        const long long index = (long long)blockIdx.x * SCORES_PER_BLOCK + i;
        if (index >= n)
            break;
        const unsigned int rank = rank_of(scores[index]);
        if ((unsigned long long)rank >> prefix_shift == prefix)
            atomicAdd(&histogram[rank >> shift & (digit < 2 ? VALUES - 1 : LAST_VALUES - 1)], 1);
    }
    __syncthreads();
    for (int value = thread; value < VALUES; value += THREADS) {
        if (histogram[value] > 0)
            atomicAdd(&counts[digit * VALUES + value], histogram[value]);
        if (digit == 2 && value < LAST_VALUES)
            block_counts[(long long)blockIdx.x * LAST_VALUES + value] = histogram[value];
    }
}

// List the indices of the scores above the k-th largest, in no particular order, then the first indices of the scores
// that equal it.  `n_above` must be zero.
extern "C" __global__ void top_k_collect(
    const float* scores, int n, int k, const int* counts, const int* block_counts, int* n_above, int* selected)
{
    __shared__ int start, equal_in_earlier_blocks;
    const int thread = threadIdx.x;
    const score_prefix prefix = find_digits(counts, 3, k);
    if (thread == 0)
        equal_in_earlier_blocks = 0;
    __syncthreads();
    int earlier = 0;
    for (int block = thread; block < (int)blockIdx.x; block += THREADS)
        earlier += block_counts[(long long)block * LAST_VALUES + prefix.digits % LAST_VALUES];
    if (earlier > 0)
        atomicAdd(&equal_in_earlier_blocks, earlier);

    const int per_thread = SCORES_PER_BLOCK / THREADS;
    const long long first = (long long)blockIdx.x * SCORES_PER_BLOCK + thread * per_thread;
    int above = 0, equal = 0;
    for (int i = 0; i < per_thread && first + i < n; ++i) {
        const unsigned int rank = rank_of(scores[first + i]);
        above += rank > prefix.digits;
        equal += rank == prefix.digits;
    }
    const int above_scan = inclusive_scan(above);
    int equal_position = inclusive_scan(equal) - equal;
    if (thread == THREADS - 1)
        start = atomicAdd(n_above, above_scan);
    __syncthreads();
    int position = start + above_scan - above;
    equal_position += equal_in_earlier_blocks;
    for (int i = 0; i < per_thread && first + i < n; ++i) {
        const unsigned int rank = rank_of(scores[first + i]);
        if (rank > prefix.digits)
            selected[position++] = (int)(first + i);
        else if (rank == prefix.digits && equal_position++ < prefix.n_selected)
            selected[k - prefix.n_selected + equal_position - 1] = (int)(first + i);
    }
}

// An integer with the order of (score, -index).  The keys of different indices differ, and 0 is not a key.
__device__ key key_of(const float* scores, int index)
{
    return (key)rank_of(scores[index]) << 32 | (0xffffffffu - (unsigned int)index);
}

// Sort n scores, either the selected ones or all, and list the k largest.
//
// The position of a score is the number of larger keys.  A block finds the positions of 32 scores; each of its warps
// compares them with an eighth of the keys.
extern "C" __global__ void top_k_sort(
    const float* scores, const int* selected, int is_selected, int n, int k, int* order)
{
    __shared__ key keys[THREADS];
    __shared__ int positions[32];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int item = blockIdx.x * 32 + lane;
    const int index = item >= n ? -1 : is_selected ? selected[item] : item;
    const key item_key = index < 0 ? 0 : key_of(scores, index);
    if (warp == 0)
        positions[lane] = 0;
    int n_larger = 0;
    for (int first = 0; first < n; first += THREADS) {
        const int other = first + thread;
        __syncthreads();
        keys[thread] = other >= n ? 0 : key_of(scores, is_selected ? selected[other] : other);
        __syncthreads();
        for (int i = 0; i < 32; ++i)
            n_larger += keys[32 * warp + i] > item_key;
    }
    atomicAdd(&positions[lane], n_larger);
    __syncthreads();
    if (warp == 0 && index >= 0 && positions[lane] < k)
        order[positions[lane]] = index;
}
