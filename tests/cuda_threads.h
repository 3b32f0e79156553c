/* A block of CUDA threads on the host, for tests: what port.h's CUDA half uses, in C++. Threads are
 * fibers that run one after the other, in rising or in falling order, each up to the next barrier;
 * so a value that is read before or after its time, where a barrier is missing, is a wrong one. A
 * shuffle is two barriers. Block and grid are small, that rows and elements go round. */
#include <ucontext.h>

#include <functional>

#include "numeric.h"

#define __CUDACC__ 1
#define __device__
#define __forceinline__ inline
#define __shared__      static

struct dim {
  unsigned x;
};
static dim threadIdx, blockIdx, gridDim = {2}, blockDim = {64};
static ucontext_t scheduler_, fibers_[64];
static char stacks_[64][1 << 16];
static bool done_[64];
static std::function<void()> body_;

static inline void __syncthreads() { swapcontext(&fibers_[threadIdx.x], &scheduler_); }

template <class T> T __shfl_xor_sync(unsigned, T value, int step) {
  static T slots[64];
  slots[threadIdx.x] = value;
  __syncthreads();
  const T other = slots[threadIdx.x ^ step];
  __syncthreads();
  return other;
}

#define __float_as_uint f32_bits
#define __uint_as_float f32_from_bits

static void enter_() {
  body_();
  done_[threadIdx.x] = true;
}

/* The grid's blocks, one after the other. */
static void run_grid(bool falling, std::function<void()> body) {
  body_ = body;
  for (unsigned b = 0; b < gridDim.x; b++) {
    blockIdx.x = falling ? gridDim.x - 1 - b : b;
    for (unsigned t = 0; t < blockDim.x; t++) {
      getcontext(&fibers_[t]);
      fibers_[t].uc_stack.ss_sp = stacks_[t];
      fibers_[t].uc_stack.ss_size = sizeof stacks_[t];
      fibers_[t].uc_link = &scheduler_;
      makecontext(&fibers_[t], enter_, 0);
      done_[t] = false;
    }
    for (bool alive = true; alive;) {
      alive = false;
      for (unsigned k = 0; k < blockDim.x; k++) {
        threadIdx.x = falling ? blockDim.x - 1 - k : k;
        if (done_[threadIdx.x]) continue;
        swapcontext(&scheduler_, &fibers_[threadIdx.x]);
        alive = true;
      }
    }
  }
}
