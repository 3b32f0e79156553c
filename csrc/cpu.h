/* cpu.h: what this processor can do. Layer 0. Asked once, at run time: nothing is compiled for one
 * machine. */
#ifndef LLM_CPU_H
#define LLM_CPU_H

enum {
  CPU_AVX2 = 1 << 0,   /* AVX2, FMA and F16C, and the system saves the registers */
  CPU_AVX512 = 1 << 1, /* F, BW, VL, DQ, VBMI, VNNI and the above */
  CPU_AVX512_BF16 = 1 << 2,
  CPU_AMX = 1 << 3, /* tiles of bytes and of bfloat16, both of the above, and the system lets us */
  CPU_DOTPROD = 1 << 4 /* 64-bit ARM: sdot */
};

unsigned cpu_features(void);

/* Of one core's first data cache; 0: not known. */
unsigned cpu_l1_bytes(void);

#endif
