// The part of CUDA C++ that the project's kernels use, so that g++ compiles them for the CPU.
//
// A launch is a loop over blocks and threads. If a kernel synchronises, the threads of a block are fibres: contexts with
// a stack of their own on one thread of the operating system. __syncthreads() switches to the next fibre. The fibres run
// in ascending order up to the first barrier, then in descending order, and so on in turns, so that a missing barrier
// shows in every run. Barriers that not all threads of a block reach end the process with a message.
//
// CuPy compiles kernels with -ftz=true, so denormal numbers of float32 are 0. Here (on x86) those of float64 are as well.

#include <bit>
#include <cmath>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <ucontext.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#define __global__
#define __device__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __syncthreads() emulator::wait_at_barrier(__LINE__)
#define __popcll __builtin_popcountll
#define atomicAdd(address, value) __atomic_fetch_add(address, value, __ATOMIC_RELAXED)
#define atomicOr(address, value) __atomic_fetch_or(address, value, __ATOMIC_RELAXED)

using std::isfinite;

static float half_to_float(unsigned short bits) { return (float)std::bit_cast<_Float16>(bits); }
static unsigned short float_to_half(float value) { return std::bit_cast<unsigned short>((_Float16)value); }

struct dim3_t { unsigned x, y, z; };

static dim3_t gridDim, blockDim, blockIdx, threadIdx;

namespace emulator {

constexpr unsigned MAX_THREADS = 1024;  // of a block, as on a GPU
constexpr size_t STACK_BYTES = 256 << 10;  // the system provides the pages that are touched
constexpr int FINISHED = 0;

struct fibre {
    jmp_buf context;
    int line;  // of the barrier that it waits at, or FINISHED
    bool is_started;
};

static fibre fibres[MAX_THREADS];
static unsigned current;
static jmp_buf scheduler;
static ucontext_t starter, started;
static void (*run_thread)(void*);
static void* kernel;

// Leave the current fibre until the scheduler resumes it. _setjmp and _longjmp, unlike swapcontext, call no system.
static __attribute__((noinline)) void wait_at_barrier(int line)
{
    fibres[current].line = line;
    if (!_setjmp(fibres[current].context))
        _longjmp(scheduler, 1);
}

static void run_fibre()
{
    for (;;) {
        run_thread(kernel);
        wait_at_barrier(FINISHED);
    }
}

// Run one fibre until its next barrier or its end.
static __attribute__((noinline)) void resume(unsigned thread)
{
    current = thread;
    threadIdx = {thread, 0, 0};
    if (_setjmp(scheduler))
        return;
    if (fibres[thread].is_started)
        _longjmp(fibres[thread].context, 1);
    fibres[thread].is_started = true;
    void* stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED || getcontext(&started)) {
        perror("cuda_emulator: no stack for a thread");
        abort();
    }
    started.uc_stack.ss_sp = stack;
    started.uc_stack.ss_size = STACK_BYTES;
    started.uc_link = nullptr;
    makecontext(&started, run_fibre, 0);
    setcontext(&started);
}

static void run_block(unsigned n_threads)
{
    for (bool descending = false;; descending = !descending) {
        for (unsigned i = 0; i < n_threads; ++i)
            resume(descending ? n_threads - 1 - i : i);
        for (unsigned t = 1; t < n_threads; ++t)
            if (fibres[t].line != fibres[0].line) {
                fprintf(stderr, "cuda_emulator: thread 0 is at line %d (0: finished), thread %u at line %d\n",
                        fibres[0].line, t, fibres[t].line);
                abort();
            }
        if (fibres[0].line == FINISHED)
            return;
    }
}

// Replaces denormal operands and results by 0 as long as it lives.
struct flush_to_zero {
#ifdef __SSE2__
    const unsigned mode = _mm_getcsr();

    flush_to_zero() { _mm_setcsr(mode | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON); }
    ~flush_to_zero() { _mm_setcsr(mode); }
#endif
};

template <typename Body>
void launch(const unsigned* grid, const unsigned* block, bool synchronises, Body body)
{
    const flush_to_zero scope;
    gridDim = {grid[0], grid[1], 1};
    blockDim = {block[0], 1, 1};
    kernel = &body;
    run_thread = [](void* kernel) { (*static_cast<Body*>(kernel))(); };
    for (unsigned y = 0; y < grid[1]; ++y)
        for (unsigned x = 0; x < grid[0]; ++x) {
            blockIdx = {x, y, 0};
            if (synchronises)
                run_block(block[0]);
            else
                for (unsigned t = 0; t < block[0]; ++t) {
                    threadIdx = {t, 0, 0};
                    body();
                }
        }
}

}  // namespace emulator
