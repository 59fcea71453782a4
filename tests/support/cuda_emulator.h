// The part of CUDA's language that the kernels use, for the CPU: a launch becomes a loop over blocks and threads.
// If a kernel synchronises, the threads of a block are real threads, and the blocks run one after the other.

#include <barrier>
#include <bit>
#include <cmath>
#include <thread>
#include <vector>

#define __global__
#define __device__ inline
#define __shared__ static
#define __syncthreads() block_barrier->arrive_and_wait()
#define __popcll __builtin_popcountll
#define atomicAdd(address, value) __atomic_fetch_add(address, value, __ATOMIC_RELAXED)
#define atomicOr(address, value) __atomic_fetch_or(address, value, __ATOMIC_RELAXED)

using std::isfinite;

static float half_to_float(unsigned short bits) { return (float)std::bit_cast<_Float16>(bits); }
static unsigned short float_to_half(float value) { return std::bit_cast<unsigned short>((_Float16)value); }

struct dim3_t { unsigned x, y, z; };

static dim3_t gridDim, blockDim;
static thread_local dim3_t blockIdx, threadIdx;
static std::barrier<>* block_barrier;

template <typename Body>
void emulate(const unsigned* grid, const unsigned* block, bool synchronises, Body body)
{
    gridDim = {grid[0], grid[1], 1};
    blockDim = {block[0], 1, 1};
    auto run_blocks = [&](unsigned first, unsigned end) {
        for (unsigned y = 0; y < grid[1]; ++y)
            for (unsigned x = 0; x < grid[0]; ++x) {
                blockIdx = {x, y, 0};
                for (unsigned t = first; t < end; ++t) {
                    threadIdx = {t, 0, 0};
                    body();
                }
                if (synchronises)
                    block_barrier->arrive_and_wait();
            }
    };
    if (!synchronises)
        return run_blocks(0, block[0]);
    std::barrier<> barrier(block[0]);
    block_barrier = &barrier;
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < block[0]; ++t)
        threads.emplace_back(run_blocks, t, t + 1);
    for (auto& thread : threads)
        thread.join();
}
