// What kernels are written against: CUDA by NVRTC, with no header of anybody's, or one fiber for each thread on a
// processor (fibers.cpp). Arithmetic that must not depend on a compiler is spelled out: nothing here is contracted.

#define LANES 16

#ifdef PLIMSOLL_FIBERS

#define DEVICE static inline
#define DEVICE_MEMBER inline
#define CONSTANT static const
#ifdef __SANITIZE_ADDRESS__
// It looks at what has one place alone.
#define SHARED static
#else
#define SHARED static thread_local
#endif
#define LAUNCH(threads)

DEVICE unsigned thread_id() { return fibers::thread(); }
DEVICE unsigned block_threads() { return fibers::threads(); }
DEVICE unsigned block_x() { return fibers::block(0); }
DEVICE unsigned block_y() { return fibers::block(1); }
DEVICE unsigned block_z() { return fibers::block(2); }
DEVICE unsigned blocks_x() { return fibers::blocks(0); }
DEVICE unsigned blocks_z() { return fibers::blocks(2); }
DEVICE void sync_block() { fibers::sync_block(); }
DEVICE void sync_warp() { fibers::sync_warp(); }
template <typename T> DEVICE T* dynamic_shared() { return (T*)fibers::shared(); }

DEVICE float fma_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE double fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
DEVICE double add_rn(double a, double b) { return a + b; }
DEVICE double mul_rn(double a, double b) { return a * b; }
DEVICE float mul_rn(float a, float b) { return a * b; }
DEVICE float add_rn(float a, float b) { return a + b; }
DEVICE float sub_rn(float a, float b) { return a - b; }
DEVICE float div_rn(float a, float b) { return a / b; }
DEVICE float sqrt_rn(float a) { return __builtin_sqrtf(a); }
DEVICE double rint_rn(double a) { return __builtin_rint(a); }
DEVICE u32 bits_of(float a) { u32 b; __builtin_memcpy(&b, &a, 4); return b; }
DEVICE float float_of(u32 a) { float b; __builtin_memcpy(&b, &a, 4); return b; }
DEVICE u64 bits_of(double a) { u64 b; __builtin_memcpy(&b, &a, 8); return b; }
DEVICE double double_of(u64 a) { double b; __builtin_memcpy(&b, &a, 8); return b; }

DEVICE u32 shuffle_xor(u32 x, unsigned lanes) { return fibers::exchange(x, fibers::lane() ^ lanes); }
DEVICE u32 shuffle(u32 x, unsigned lane) { return fibers::exchange(x, lane); }
// A bit for each lane of the warp, all of which take part.
DEVICE u32 ballot(bool x) { return fibers::ballot(x); }
DEVICE u32 ones(u32 x) { return (u32)__builtin_popcount(x); }
// What was there: of memory that a block shares, whose threads take turns.
DEVICE u32 atomic_add(u32* to, u32 x) { u32 was = *to; *to = was + x; return was; }

#define TENSOR_CORES 1
DEVICE void copy_16(void* to, const void* from, u32 bytes) { fibers::copy(to, from, bytes); }
DEVICE void copy_commit() { fibers::commit(); }
template <int LATEST> DEVICE void copy_wait() { fibers::wait(LATEST); }
DEVICE void load_transposed(u32 to[4], const void* row) { fibers::load_transposed(to, row); }

// Four products of bytes with signs.
DEVICE int dot4(u32 a, u32 b, int c) {
  for (int i = 0; i < 32; i += 8) c += (int)(signed char)(a >> i) * (int)(signed char)(b >> i);
  return c;
}

// One kernel: `a` are its arguments.
#define KERNEL(name, Args)                                             \
  static void name(const Args& a);                                     \
  static void name##_fiber(const void* a) { name(*(const Args*)a); }   \
  static fibers::Kernel name##_kernel(#name, name##_fiber, sizeof(Args)); \
  static void name(const Args& a)

#else

#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
#define CONSTANT static __constant__ const
#define SHARED __shared__
#define LAUNCH(threads) __launch_bounds__(threads)

DEVICE unsigned thread_id() { return threadIdx.x; }
DEVICE unsigned block_threads() { return blockDim.x; }
DEVICE unsigned block_x() { return blockIdx.x; }
DEVICE unsigned block_y() { return blockIdx.y; }
DEVICE unsigned block_z() { return blockIdx.z; }
DEVICE unsigned blocks_x() { return gridDim.x; }
DEVICE unsigned blocks_z() { return gridDim.z; }
DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
extern __shared__ __align__(16) unsigned char plimsoll_shared[];
template <typename T> DEVICE T* dynamic_shared() { return (T*)plimsoll_shared; }

DEVICE float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE double fma_rn(double a, double b, double c) { return __fma_rn(a, b, c); }
DEVICE double add_rn(double a, double b) { return __dadd_rn(a, b); }
DEVICE double mul_rn(double a, double b) { return __dmul_rn(a, b); }
DEVICE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
DEVICE float add_rn(float a, float b) { return __fadd_rn(a, b); }
DEVICE float sub_rn(float a, float b) { return __fsub_rn(a, b); }
DEVICE float div_rn(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float sqrt_rn(float a) { return __fsqrt_rn(a); }
DEVICE double rint_rn(double a) { return rint(a); }
DEVICE u32 bits_of(float a) { return __float_as_uint(a); }
DEVICE float float_of(u32 a) { return __uint_as_float(a); }
DEVICE u64 bits_of(double a) { return (u64)__double_as_longlong(a); }
DEVICE double double_of(u64 a) { return __longlong_as_double((long long)a); }

DEVICE u32 shuffle_xor(u32 x, unsigned lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
DEVICE u32 shuffle(u32 x, unsigned lane) { return __shfl_sync(0xffffffffu, x, lane); }
DEVICE u32 ballot(bool x) { return __ballot_sync(0xffffffffu, x); }
DEVICE u32 ones(u32 x) { return (u32)__popc(x); }
DEVICE u32 atomic_add(u32* to, u32 x) { return atomicAdd(to, x); }

#if __CUDA_ARCH__ >= 800
#define TENSOR_CORES 1
DEVICE u32 shared_address(const void* p) {
  u32 address;
  asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(address) : "l"(p));
  return address;
}
DEVICE void copy_16(void* to, const void* from, u32 bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LATEST> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LATEST) : "memory"); }
DEVICE void load_transposed(u32 to[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
#endif

DEVICE int dot4(u32 a, u32 b, int c) {
#if __CUDA_ARCH__ >= 610
  return __dp4a((int)a, (int)b, c);
#else
  for (int i = 0; i < 32; i += 8) c += (int)(signed char)(a >> i) * (int)(signed char)(b >> i);
  return c;
#endif
}

// Named apart from the functions that CUDA itself has.
#define KERNEL(name, Args) extern "C" __global__ void plimsoll_##name(const Args a)

#endif

DEVICE float shuffle_xor(float x, unsigned lanes) { return float_of(shuffle_xor(bits_of(x), lanes)); }
DEVICE float shuffle(float x, unsigned lane) { return float_of(shuffle(bits_of(x), lane)); }

// What lies at an address.
template <typename T> DEVICE T* at(ptr address) { return (T*)(void*)address; }

// A number at any address: a device reads and writes four bytes at once at multiples of four only.
DEVICE float load_float(const void* from) {
  if (((u64)from & 3) == 0) return *(const float*)from;
  const unsigned char* b = (const unsigned char*)from;
  return float_of((u32)b[0] | (u32)b[1] << 8 | (u32)b[2] << 16 | (u32)b[3] << 24);
}
DEVICE void store_float(float x, void* to) {
  if (((u64)to & 3) == 0) {
    *(float*)to = x;
    return;
  }
  for (int i = 0; i < 4; i++) ((unsigned char*)to)[i] = (unsigned char)(bits_of(x) >> (8 * i));
}

#define NEGATIVE_INFINITY float_of(0xff800000u)
#define NOT_A_NUMBER float_of(0x7fc00000u)

// The larger; `b` where either is NaN. The smaller likewise.
DEVICE float larger(float a, float b) { return a > b ? a : b; }
DEVICE float smaller(float a, float b) { return a < b ? a : b; }

// `Lanes::exp`.
DEVICE float exp_of(float v) {
  const float ROUND = 12582912.0f;
  float x = smaller(larger(v, -87.0f), 88.0f);
  float n = sub_rn(fma_rn(x, 1.44269504088896340736f, ROUND), ROUND);
  float r = fma_rn(n, -0.6933594f, x);
  r = fma_rn(n, 2.1219444e-4f, r);
  float p = 1.9875691e-4f;
  p = fma_rn(p, r, 1.3981999e-3f);
  p = fma_rn(p, r, 8.333452e-3f);
  p = fma_rn(p, r, 4.1665796e-2f);
  p = fma_rn(p, r, 1.6666666e-1f);
  p = fma_rn(p, r, 0.5f);
  float e = add_rn(fma_rn(p, mul_rn(r, r), r), 1.0f);
  return mul_rn(e, float_of((u32)((int)n + 127) << 23));
}

// `Lanes::tanh`.
DEVICE float tanh_of(float x) {
  float e = exp_of(add_rn(x, x));
  return sub_rn(1.0f, div_rn(2.0f, add_rn(e, 1.0f)));
}

CONSTANT float ERF[4][10] = {
  {0.96546876f, -0.14053608f, 0.019852497f, -0.0022854856f, 0.00021751717f, -1.7536824e-5f, 1.2233627e-6f, -7.5574924e-8f, 4.1387667e-9f, 0.0f},
  {0.96610516f, 0.059465144f, -0.044598855f, 0.017344026f, -0.0027874655f, -0.00046471384f, 0.00030208484f, -3.672784e-5f, -9.38254e-6f, 3.0086162e-6f},
  {0.999593f, 0.0010891422f, -0.0013614342f, 0.0010437603f, -0.0005388449f, 0.00019117187f, -4.3878314e-5f, 4.2271654e-6f, 1.1965309e-6f, -4.792871e-7f},
  {0.9999993f, 2.6997145e-6f, -4.724086e-6f, 5.2869145e-6f, -4.235677e-6f, 2.5662764e-6f, -1.2054018e-6f, 4.542747e-7f, -1.4467747e-7f, 3.0359473e-8f},
};

// `math::erf`.
DEVICE float erf_of(float x) {
  float size = float_of(bits_of(x) & 0x7fffffffu);
  u32 sign = bits_of(x) & 0x80000000u;
  if (!(size < 4.0f)) return size >= 4.0f ? float_of(0x3f800000u | sign) : x;
  u32 of = (u32)size;
  float t = of == 0 ? fma_rn(2.0f, mul_rn(size, size), -1.0f) : fma_rn(2.0f, size, -(float)(2 * of + 1));
  float p = ERF[of][9];
  for (int i = 8; i >= 0; i--) p = fma_rn(p, t, ERF[of][i]);
  return of == 0 ? mul_rn(x, p) : float_of(bits_of(p) | sign);
}

// What keys and values are kept as (`plimsoll-kernels`, cached).
struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };
struct f8 { unsigned char bits; };
struct i8 { signed char value; };

DEVICE float wide(float x) { return x; }
DEVICE float wide(bf16 x) { return float_of((u32)x.bits << 16); }
DEVICE float wide(f16 x) {
  u32 sign = (u32)(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  float number = mul_rn(float_of(rest << 13), float_of((127u + 112u) << 23));
  return float_of(bits_of(number) | (rest >= 0x7c00 ? 0x7f800000u : 0) | sign);
}
// float8 e4m3 (`plimsoll-kernels`, f8).
DEVICE float wide(f8 x) {
  u32 sign = (u32)(x.bits & 0x80) << 24, rest = x.bits & 0x7f;
  float number = mul_rn(float_of(rest << 20), float_of((127u + 120u) << 23));
  return float_of(bits_of(number) | (rest == 0x7f ? 0x7fc00000u : 0) | sign);
}
// That of the lowest byte, which is a number.
DEVICE float e4m3_of(u32 word) {
  return mul_rn(float_of((word & 0x80u) << 24 | (word & 0x7fu) << 20), float_of((127u + 120u) << 23));
}
DEVICE float wide(i8 x) { return (float)x.value; }

// The nearest whole number, ties to even, of numbers below 2^22.
DEVICE int whole(float x) {
  const float ROUND = 12582912.0f;
  return (int)(bits_of(add_rn(x, ROUND)) - bits_of(ROUND));
}

DEVICE void narrow(float x, float* to) { *to = x; }
DEVICE void narrow(float x, bf16* to) {
  u32 b = bits_of(x);
  bool nan = (b & 0x7fffffffu) > 0x7f800000u;
  to->bits = nan ? (unsigned short)(b >> 16 | 0x40) : (unsigned short)((b + 0x7fffu + (b >> 16 & 1)) >> 16);
}
DEVICE void narrow(float x, f16* to) {
  u32 b = bits_of(x), sign = b >> 16 & 0x8000, size = b & 0x7fffffffu, half;
  if (size > 0x7f800000u) half = 0x7e00;
  else if (size == 0x7f800000u) half = 0x7c00;
  else if (size < 0x38800000u) half = bits_of(add_rn(float_of(size), 0.5f)) - bits_of(0.5f);
  else {
    half = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
    if (half > 0x7bff) half = 0x7bff;
  }
  to->bits = (unsigned short)(sign | half);
}
DEVICE void narrow(float x, f8* to) {
  u32 b = bits_of(x), sign = b >> 24 & 0x80, size = b & 0x7fffffffu, code;
  if (size >= 0x7f800000u) code = 0x7f;
  else if (size < 0x3c800000u) code = bits_of(add_rn(float_of(size), 16384.0f)) - bits_of(16384.0f);
  else {
    code = (size - (120u << 23) + 0x7ffff + (size >> 20 & 1)) >> 20;
    if (code > 0x7e) code = 0x7e;
  }
  to->bits = (unsigned char)(sign | code);
}
DEVICE void narrow(float x, i8* to) { to->value = (signed char)whole(x); }

// Sixteen bytes of device memory on their way to shared memory (`copy_16`: so many of them are read, the others become
// zeros) are there when the group that they were committed with was waited for: for the thread that waits, with
// `copy_wait`, for all groups but the latest ones.

#ifdef TENSOR_CORES
// A warp's `c` (16 x 8) += `a` (16 x 16) `b` (16 x 8), of 16-bit elements, two a register: with g = lane / 4 and t = lane % 4
// a lane has rows g and g + 8 of a, columns 2t and 2t + 1, then the same eight columns on; of b column g, rows 2t and 2t + 1,
// then eight rows on; of c rows g and g + 8, columns 2t and 2t + 1. An element of c follows from its row of a, its
// column of b and what it was.
#ifdef PLIMSOLL_FIBERS
template <typename C> static float wide_bits(unsigned short bits) { return wide(C{bits}); }
template <typename C> DEVICE void mma(float c[4], const u32 a[4], const u32 b[2]) { fibers::mma(c, a, b, wide_bits<C>); }
// e^x, near: as the device's own instruction has it.
DEVICE float exp_near(float x) { return exp_of(x); }
#else
template <typename C> struct Mma;
#define MMA(C, type)                                                                                      \
  template <> struct Mma<C> {                                                                             \
    static __device__ __forceinline__ void multiply(float c[4], const u32 a[4], const u32 b[2]) {         \
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                 \
                   ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                 \
                   : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                       \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                   \
    }                                                                                                     \
  };
MMA(bf16, "bf16")
MMA(f16, "f16")
template <typename C> DEVICE void mma(float c[4], const u32 a[4], const u32 b[2]) { Mma<C>::multiply(c, a, b); }
DEVICE float exp_near(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(mul_rn(x, 1.44269504088896340736f)));
  return y;
}
#endif

// Two numbers as one register, the first below, rounded to nearest; the last argument says as what.
DEVICE u32 pair_of(float low, float high, f16) {
  f16 l, h;
  narrow(low, &l);
  narrow(high, &h);
  return (u32)l.bits | (u32)h.bits << 16;
}
DEVICE u32 pair_of(float low, float high, bf16) {
#ifdef PLIMSOLL_FIBERS
  bf16 l, h;
  narrow(low, &l);
  narrow(high, &h);
  return (u32)l.bits | (u32)h.bits << 16;
#else
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}
#endif

// Sixteen bytes at once.
struct alignas(16) Sixteen { u32 words[4]; };

// Elements of a page that a scale takes.
template <typename C> struct Scale { enum { elements = 0 }; };
template <> struct Scale<i8> { enum { elements = 4 }; };

// Of the largest size among some elements, by its bits: what whole numbers are to be multiplied by, and what elements
// are multiplied by to become them.
DEVICE void scale_of(u32 largest, float* scale, float* inverse) {
  float top = float_of(largest);
  bool finite = largest < 0x7f800000u;
  *scale = finite ? div_rn(top, 127.0f) : NOT_A_NUMBER;
  *inverse = finite && top > 1e-30f ? div_rn(127.0f, top) : 0.0f;
}

// Some queries of one sequence in a step: those of tokens `row..row + count`, at positions from `start` on; its pages are
// `tables[table..]`.
struct Seq { u32 row, start, count, table; };

#define WEIGHT_BF16 0
#define WEIGHT_FP8 1
#define WEIGHT_INT8 2
#define WEIGHT_INT4 3
#define WEIGHT_G128 4
#define WEIGHT_G64 5
#define WEIGHT_G32 6
// Of the word before a published group of four bits: what its numbers are less, and bits that are none of its scale.
#define GROUP_ZERO 31u
#define GROUP_BELOW 0x1fffu
#define PANEL 32

// Columns of a published group of four bits.
#define GROUP_COLUMNS(form) ((form) == WEIGHT_G128 ? 128u : (form) == WEIGHT_G64 ? 64u : 32u)

// 32-bit words that `k` columns take of each row of a panel.
DEVICE u64 row_words(u32 form, u64 k) {
  if (form == WEIGHT_BF16) return (k + 1) / 2;
  if (form < WEIGHT_INT4) return (k + 3) / 4 + (k + 127) / 128;
  u32 group = form == WEIGHT_INT4 ? 64 : GROUP_COLUMNS(form);
  return (k + 7) / 8 + (k + group - 1) / group;
}

// The element of row `row` and column `i` of a packed matrix.
DEVICE float element(u32 form, const u32* words, u64 k, u32 row, u32 i) {
  const u32* panel = words + (u64)(row / PANEL) * PANEL * row_words(form, k) + row % PANEL;
  if (form == WEIGHT_BF16) {
    u32 w = panel[(u64)(i / 2) * PANEL];
    return float_of(i % 2 ? w & 0xffff0000u : w << 16);
  }
  if (form < WEIGHT_INT4) {
    u32 w = panel[(u64)(i / 4 + i / 128 + 1) * PANEL];
    float scale = float_of(panel[(u64)(i / 128 * 33) * PANEL]);
    if (form == WEIGHT_FP8) return mul_rn(e4m3_of(w >> (8 * (i % 4))), scale);
    return mul_rn((float)(signed char)((w >> (8 * (i % 4)) & 0xff) ^ 0x80), scale);
  }
  if (form != WEIGHT_INT4) {
    u32 group = GROUP_COLUMNS(form);
    u64 first = (u64)(i / group) * (group / 8 + 1);
    u32 q = panel[(first + 1 + i % group / 8) * PANEL] >> (8 * (i % 4) + 4 * (i % 8 / 4)) & 15;
    u32 w = panel[first * PANEL];
    return mul_rn(sub_rn((float)q, (float)(w & GROUP_ZERO)), float_of(w & ~GROUP_BELOW));
  }
  u64 line = (u64)(i / 64) * 9;
  u32 w = panel[(line + 1 + i % 64 / 8) * PANEL] >> (8 * (i % 4) + 4 * (i % 8 / 4)) & 15;
  u32 s = panel[line * PANEL] >> (16 * (i % 64 / 32)) << 16;
  return mul_rn(sub_rn((float)w, 8.0f), float_of(s));
}
