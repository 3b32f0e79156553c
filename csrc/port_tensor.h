/* port_tensor.h: what a kernel on tensor cores needs of an NVIDIA GPU of sm_80 or later, in
 * instructions. Layer T. tests/cuda_threads.h has the same functions for threads on the host, in
 * this file's place. All 32 lanes of a warp call products and matrices together. */
#ifndef LLM_PORT_TENSOR_H
#define LLM_PORT_TENSOR_H

#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#define TENSOR_KERNEL(name, n_threads)                                                             \
  static __device__ void name##_block(const llm_flash_args *a, int64_t block);                     \
  extern "C" __global__ void __launch_bounds__(n_threads)                                          \
      name##_kernel(const llm_flash_args args, int64_t n_blocks) {                                 \
    for (int64_t i = blockIdx.x; i < n_blocks; i += gridDim.x) name##_block(&args, i);             \
  }                                                                                                \
  static __device__ void name##_block(const llm_flash_args *a, int64_t block)

/* c += A B^T: A 16 x 16 and B 8 x 16 of bfloat16, c 16 x 8 of float, where the lanes hold them. */
PORT_INLINE void port_product(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four matrices of 8 x 8 from shared memory; lane l says where row l % 8 of matrix l / 8 begins. A
 * lane gets of matrix i the two elements 2 (l % 4) of row l / 4; turned, of column l / 4. */
PORT_INLINE void port_matrices(uint32_t (&out)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"((uint32_t)__cvta_generic_to_shared(row))
               : "memory");
}
PORT_INLINE void port_matrices_turned(uint32_t (&out)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"((uint32_t)__cvta_generic_to_shared(row))
               : "memory");
}

/* Copies to shared memory that port_arrived waits for, this thread's own; zeros where not inside.
 * Both addresses are aligned to the size. */
PORT_INLINE void port_bring_16(void *to, const void *from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from), "r"(inside ? 16 : 0)
               : "memory");
}
PORT_INLINE void port_bring_4(void *to, const void *from, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :
               : "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from), "r"(inside ? 4 : 0)
               : "memory");
}
PORT_INLINE void port_arrived() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/* Two bfloat16 side by side, the first one low. */
PORT_INLINE uint32_t port_word(const void *x) { return *(const uint32_t *)x; }
PORT_INLINE void port_put_word(void *x, uint32_t word) { *(uint32_t *)x = word; }
PORT_INLINE uint32_t port_pair(float low, float high) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}

/* 2^x within 2^-22 of it. */
PORT_INLINE float port_exp2(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

#endif
