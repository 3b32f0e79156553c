/* A block of CUDA threads on the host, for tests: what port.h's CUDA half and port_tensor.h use, in
 * C++. Threads are fibers. A warp runs to the next barrier of the block before another one does,
 * and its lanes one after the other to the next instruction that they do together; both in rising
 * or in falling order: so a value that is read before or after its time, where a barrier is
 * missing, is a wrong one. Copies to shared memory come when they are waited for, and not before.
 * Row kernels have a small block and grid, that rows and elements go round. */
#define LLM_PORT_TENSOR_H /* this stands for it */
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "numeric.h"

#define __CUDACC__ 1
#define __device__
#define __forceinline__ inline
#define __shared__      static

struct dim {
  unsigned x;
};
static dim threadIdx, blockIdx, gridDim = {2}, blockDim = {64};

enum { MOST_THREADS = 128, LANES = 32 };
static ucontext_t beginnings_[MOST_THREADS];
static jmp_buf scheduler_, fibers_[MOST_THREADS]; /* swapcontext asks the system at each turn */
static char stacks_[MOST_THREADS][1 << 16];
static bool begun_[MOST_THREADS], done_[MOST_THREADS];
static bool waits_[MOST_THREADS]; /* at a barrier of the block */
static std::function<void()> body_;

static inline void yield_() {
  if (!_setjmp(fibers_[threadIdx.x])) _longjmp(scheduler_, 1);
}
static inline void __syncthreads() {
  waits_[threadIdx.x] = true;
  yield_();
}

/* What each lane of this warp gives; two calls between them keep apart what is given before and
 * after. */
template <class T> struct given {
  T of[MOST_THREADS];
  const T *operator()(const T &own) {
    of[threadIdx.x] = own;
    yield_();
    return of + threadIdx.x / LANES * LANES;
  }
};

template <class T> T __shfl_xor_sync(unsigned, T value, int step) {
  static given<T> all;
  const T other = all(value)[threadIdx.x % LANES ^ step];
  yield_();
  return other;
}

#define __float_as_uint f32_bits
#define __uint_as_float f32_from_bits

static void enter_() {
  body_();
  done_[threadIdx.x] = true;
  _longjmp(scheduler_, 1);
}

/* Runs thread threadIdx.x to its next yield_ or to its end. */
__attribute__((noinline)) static void resume_() {
  if (_setjmp(scheduler_)) return;
  if (begun_[threadIdx.x]) _longjmp(fibers_[threadIdx.x], 1);
  begun_[threadIdx.x] = true;
  setcontext(&beginnings_[threadIdx.x]);
}

/* The grid's blocks, one after the other. */
static void run_grid(bool falling, unsigned n_threads, std::function<void()> body) {
  body_ = body;
  blockDim.x = n_threads;
  const auto turn = [&](unsigned i, unsigned n) { return falling ? n - 1 - i : i; };
  for (unsigned b = 0; b < gridDim.x; b++) {
    blockIdx.x = turn(b, gridDim.x);
    for (unsigned t = 0; t < n_threads; t++) {
      getcontext(&beginnings_[t]);
      beginnings_[t].uc_stack.ss_sp = stacks_[t];
      beginnings_[t].uc_stack.ss_size = sizeof stacks_[t];
      beginnings_[t].uc_link = NULL;
      makecontext(&beginnings_[t], enter_, 0);
      begun_[t] = done_[t] = waits_[t] = false;
    }
    for (bool alive = true; alive;) {
      alive = false;
      for (unsigned w = 0; w < n_threads / LANES; w++)
        for (bool runs = true; runs;) {
          runs = false;
          for (unsigned l = 0; l < LANES; l++) {
            threadIdx.x = turn(w, n_threads / LANES) * LANES + turn(l, LANES);
            if (done_[threadIdx.x] || waits_[threadIdx.x]) continue;
            resume_();
            runs = alive = true;
          }
        }
      for (bool &waits : waits_) waits = false;
    }
  }
}

/* ---- port_tensor.h ---- */

#define UNROLL
#define ROLLED

static inline uint32_t port_word(const void *x) {
  uint32_t out;
  memcpy(&out, x, sizeof out);
  return out;
}
static inline void port_put_word(void *x, uint32_t word) { memcpy(x, &word, sizeof word); }
static inline float half_(uint32_t word, int i) {
  return f32_from_bits(i ? word & 0xffff0000u : word << 16);
}

static inline void port_product(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct operands {
    uint32_t a[4], b[2];
  };
  static given<operands> all;
  const operands *lane = all({{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const int own = (int)threadIdx.x % LANES;
  for (int i = 0; i < 4; i++) {
    const int row = own / 4, column = own % 4 * 2 + i % 2;
    for (int k = 0; k < 16; k++) {
      const operands *x = &lane[row * 4 + k % 8 / 2], *y = &lane[column * 4 + k % 8 / 2];
      c[i] += half_(x->a[k / 8 * 2 + i / 2], k % 2) * half_(y->b[k / 8], k % 2);
    }
  }
  yield_();
}

static inline void matrices_(uint32_t (&out)[4], const void *row, bool turned) {
  static given<const char *> all;
  const char *const *rows = all((const char *)row);
  const int own = (int)threadIdx.x % LANES, at = own / 4, pair = own % 4 * 2;
  for (int i = 0; i < 4; i++) {
    uint16_t of[2];
    for (int e = 0; e < 2; e++) {
      const char *from = rows[8 * i + (turned ? pair + e : at)];
      memcpy(&of[e], from + 2 * (turned ? at : pair + e), sizeof of[e]);
    }
    out[i] = of[0] | (uint32_t)of[1] << 16;
  }
  yield_();
}
static inline void port_matrices(uint32_t (&out)[4], const void *row) {
  matrices_(out, row, false);
}
static inline void port_matrices_turned(uint32_t (&out)[4], const void *row) {
  matrices_(out, row, true);
}

static std::vector<std::function<void()>> under_way_[MOST_THREADS];

static inline void bring_(void *to, const void *from, size_t size, bool inside) {
  if (((uintptr_t)to | (uintptr_t)from) % size) abort(); /* a GPU would refuse it */
  under_way_[threadIdx.x].push_back([=] {
    if (inside)
      memcpy(to, from, size);
    else
      memset(to, 0, size);
  });
}
static inline void port_bring_16(void *to, const void *from, bool inside) {
  bring_(to, from, 16, inside);
}
static inline void port_bring_4(void *to, const void *from, bool inside) {
  bring_(to, from, 4, inside);
}
static inline void port_arrived() {
  for (auto &copy : under_way_[threadIdx.x]) copy();
  under_way_[threadIdx.x].clear();
}
