// Kernels on a processor: each thread of a block is a fiber, blocks follow one another. What this finds: wrong indices,
// masks and tables, barriers that not all threads reach, wrong arithmetic; compiled with AddressSanitizer, every access
// outside of the memory that a kernel was given, or at no multiple of its size. What it does not: races.

#define PLIMSOLL_FIBERS
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <mutex>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
// Where the stack changes, and what lies there may be used or not.
#define STACK_LEAVES(save, bottom, size) __sanitizer_start_switch_fiber(save, bottom, size)
#define STACK_CAME(save, bottom, size) __sanitizer_finish_switch_fiber(save, bottom, size)
#define MEMORY_OPENS(at, bytes) __asan_unpoison_memory_region(at, bytes)
#define MEMORY_CLOSES(at, bytes) __asan_poison_memory_region(at, bytes)
#else
#define STACK_LEAVES(save, bottom, size)
#define STACK_CAME(save, bottom, size)
#define MEMORY_OPENS(at, bytes)
#define MEMORY_CLOSES(at, bytes)
#endif

namespace fibers {

enum State { RUNS, IN_BLOCK, IN_WARP, ENDED };
const unsigned MOST = 1024;
const size_t STACK = 128 << 10;

#if defined(__x86_64__)
struct Context { void* stack; };
extern "C" void plimsoll_switch(Context* from, Context* to);
asm(R"(
.text
.globl plimsoll_switch
plimsoll_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
static void enter(Context* c, char* stack, void (*f)()) {
  void** top = (void**)(stack + STACK);
  // As if called: the stack is 8 past a multiple of 16 when a function begins.
  *--top = nullptr;
  *--top = (void*)f;
  for (int i = 0; i < 6; i++) *--top = nullptr;
  c->stack = top;
}
#else
typedef ucontext_t Context;
static void plimsoll_switch(Context* from, Context* to) { swapcontext(from, to); }
static void enter(Context* c, char* stack, void (*f)()) {
  getcontext(c);
  c->uc_stack.ss_sp = stack;
  c->uc_stack.ss_size = STACK;
  c->uc_link = nullptr;
  makecontext(c, f, 0);
}
#endif

// Bytes of a thread that are on their way to shared memory, in the order in which they were asked for.
struct Copy { void* to; const void* from; uint32_t bytes, group; };
struct Copies { unsigned count, groups; Copy copies[128]; };

// One block at a time, on whatever thread calls.
struct Running {
  unsigned threads, block[3], blocks[3];
  void (*body)(const void*);
  const void* args;
  unsigned current;
  State state[MOST];
  uint32_t slots[MOST];
  uint32_t fragments[MOST][6];
  const void* rows[MOST];
  Copies copies[MOST];
  bool overflown;
  Context context[MOST], home;
  // What sanitizers keep of each stack, and where the thread's own one lies.
  void *kept[MOST], *kept_home;
  const void* home_bottom;
  size_t home_size;
  char* stacks;
  char* shared;
};
static thread_local Running* running;

static unsigned thread() { return running->current; }
static unsigned threads() { return running->threads; }
static unsigned block(int i) { return running->block[i]; }
static unsigned blocks(int i) { return running->blocks[i]; }
static unsigned lane() { return running->current % 32; }
static void* shared() { return running->shared; }

static void leave(State why) {
  Running* r = running;
  unsigned me = r->current;
  r->state[me] = why;
  STACK_LEAVES(why == ENDED ? nullptr : &r->kept[me], r->home_bottom, r->home_size);
  plimsoll_switch(&r->context[me], &r->home);
  STACK_CAME(r->kept[me], &r->home_bottom, &r->home_size);
}
static void resume(Running* r, unsigned i) {
  r->current = i;
  STACK_LEAVES(&r->kept_home, r->stacks + (size_t)i * STACK, STACK);
  plimsoll_switch(&r->home, &r->context[i]);
  STACK_CAME(r->kept_home, nullptr, nullptr);
}
static void sync_block() { leave(IN_BLOCK); }
static void sync_warp() { leave(IN_WARP); }

// What the lane `from` of this warp gives, where all of the warp take part.
static uint32_t exchange(uint32_t x, unsigned from) {
  Running* r = running;
  unsigned me = r->current;
  r->slots[me] = x;
  sync_warp();
  uint32_t other = r->slots[me / 32 * 32 + from % 32];
  sync_warp();
  return other;
}

static uint32_t ballot(bool x) {
  Running* r = running;
  unsigned me = r->current, warp = me / 32 * 32;
  r->slots[me] = x;
  sync_warp();
  uint32_t all = 0;
  for (unsigned i = 0; i < 32 && warp + i < r->threads; i++) all |= (r->slots[warp + i] & 1) << i;
  sync_warp();
  return all;
}

// Nothing is copied before it is waited for: who does not wait finds what lay there.
static void copy(void* to, const void* from, uint32_t bytes) {
  Copies& c = running->copies[running->current];
  if (c.count == sizeof(c.copies) / sizeof(Copy)) running->overflown = true;
  else c.copies[c.count++] = {to, from, bytes, c.groups};
}
static void commit() { running->copies[running->current].groups++; }
static void wait(unsigned latest) {
  Copies& c = running->copies[running->current];
  unsigned left = 0;
  for (unsigned i = 0; i < c.count; i++) {
    Copy& one = c.copies[i];
    if (one.group + latest >= c.groups) {
      c.copies[left++] = one;
      continue;
    }
    memset(one.to, 0, 16);
    memcpy(one.to, one.from, one.bytes);
  }
  c.count = left;
}

// Every product is added in binary64, and the sum rounded once: a device adds with fewer bits.
static void mma(float c[4], const uint32_t a[4], const uint32_t b[2], float (*wide)(unsigned short)) {
  Running* r = running;
  unsigned me = r->current, warp = me / 32 * 32, lane = me % 32;
  memcpy(r->fragments[me], a, 16);
  memcpy(r->fragments[me] + 4, b, 8);
  sync_warp();
  for (unsigned i = 0; i < 4; i++) {
    unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double sum = c[i];
    for (unsigned k = 0; k < 16; k++) {
      uint32_t x = r->fragments[warp + row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
      uint32_t y = r->fragments[warp + column * 4 + k % 8 / 2][4 + k / 8];
      sum += (double)wide((unsigned short)(x >> k % 2 * 16)) * wide((unsigned short)(y >> k % 2 * 16));
    }
    c[i] = (float)sum;
  }
  sync_warp();
}

static void load_transposed(uint32_t to[4], const void* row) {
  Running* r = running;
  unsigned me = r->current, warp = me / 32 * 32, lane = me % 32;
  r->rows[me] = row;
  sync_warp();
  for (unsigned i = 0; i < 4; i++) {
    const unsigned short* low = (const unsigned short*)r->rows[warp + i * 8 + lane % 4 * 2];
    const unsigned short* high = (const unsigned short*)r->rows[warp + i * 8 + lane % 4 * 2 + 1];
    to[i] = (uint32_t)low[lane / 4] | (uint32_t)high[lane / 4] << 16;
  }
  sync_warp();
}

static void begin() {
  STACK_CAME(nullptr, &running->home_bottom, &running->home_size);
  running->body(running->args);
  leave(ENDED);
}

// Whether a block came to its end: not where some of its threads wait for others that wait elsewhere.
static bool run_block(Running* r) {
  unsigned n = r->threads;
  for (unsigned i = 0; i < n; i++) {
    r->state[i] = RUNS;
    r->copies[i].count = r->copies[i].groups = 0;
    enter(&r->context[i], r->stacks + (size_t)i * STACK, begin);
  }
  for (;;) {
    bool ran = false;
    for (unsigned i = 0; i < n; i++)
      if (r->state[i] == RUNS) {
        resume(r, i);
        ran = true;
      }
    // A warp goes on when all of it that live are there; a block likewise.
    bool woke = false, all_block = true, any = false;
    for (unsigned w = 0; w < n; w += 32) {
      bool all_warp = true, in_warp = false;
      for (unsigned i = w; i < n && i < w + 32; i++) {
        if (r->state[i] == ENDED) continue;
        any = true;
        if (r->state[i] != IN_BLOCK) all_block = false;
        if (r->state[i] == IN_WARP) in_warp = true;
        else all_warp = false;
      }
      if (in_warp && all_warp)
        for (unsigned i = w; i < n && i < w + 32; i++)
          if (r->state[i] == IN_WARP) { r->state[i] = RUNS; woke = true; }
    }
    if (!any) return true;
    if (all_block)
      for (unsigned i = 0; i < n; i++)
        if (r->state[i] == IN_BLOCK) { r->state[i] = RUNS; woke = true; }
    if (!woke && !ran) return false;
  }
}

struct Kernel {
  const char* name;
  void (*body)(const void*);
  size_t args;
  Kernel* next;
  static Kernel* first;
  Kernel(const char* name, void (*body)(const void*), size_t args) : name(name), body(body), args(args), next(first) {
    first = this;
  }
};
Kernel* Kernel::first = nullptr;

}  // namespace fibers

#include "kernels.cuh"
#include "probes.cuh"

// 0, or why not: 1 there is no such kernel, 2 its arguments have another size, 3 its threads wait for each other, 4 no memory,
// 5 more threads than a block has, 6 more copies on their way than a thread keeps.
extern "C" int plimsoll_fibers_launch(const char* name, const uint32_t* grid, uint32_t threads, uint32_t shared,
                                      const void* args, size_t len) {
  using namespace fibers;
  Kernel* k = Kernel::first;
  while (k && strcmp(k->name, name)) k = k->next;
  if (!k) return 1;
  if (k->args != len) return 2;
  if (threads == 0 || threads > MOST) return 5;
#if defined(__SANITIZE_ADDRESS__)
  // What a block shares is then everybody's (prelude.cuh).
  static std::mutex one;
  std::lock_guard<std::mutex> alone(one);
#endif
  static thread_local Running* r;
  if (!r) {
    r = (Running*)calloc(1, sizeof(Running));
    if (!r) return 4;
    void* stacks = mmap(nullptr, STACK * MOST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stacks == MAP_FAILED) return 4;
    r->stacks = (char*)stacks;
  }
  size_t room = ((size_t)shared + 127) / 64 * 64;
  r->shared = (char*)aligned_alloc(64, room);
  if (!r->shared) return 4;
  // Whoever leaves what was asked for is found.
  MEMORY_CLOSES(r->shared + shared, room - shared);
  r->threads = threads;
  r->overflown = false;
  r->body = k->body;
  r->args = args;
  running = r;
  bool ended = true;
  for (int i = 0; i < 3; i++) r->blocks[i] = grid[i];
  for (uint32_t z = 0; ended && z < grid[2]; z++)
    for (uint32_t y = 0; ended && y < grid[1]; y++)
      for (uint32_t x = 0; ended && x < grid[0]; x++) {
        r->block[0] = x, r->block[1] = y, r->block[2] = z;
        // As on a device, whatever lies there: NaN, which shows.
        memset(r->shared, 0xff, shared);
        ended = run_block(r);
      }
  free(r->shared);
  // Those that wait for ever have not come back from their calls.
  if (!ended) {
    MEMORY_OPENS(r->stacks, STACK * MOST);
  }
  if (r->overflown) return 6;
  return ended ? 0 : 3;
}

// Whether kernels are stopped that use memory which is closed to them.
extern "C" int plimsoll_fibers_checks() {
#if defined(__SANITIZE_ADDRESS__)
  return 1;
#else
  return 0;
#endif
}

extern "C" void plimsoll_fibers_open(const void* at, size_t bytes, int open) {
  (void)at, (void)bytes;
  if (open) {
    MEMORY_OPENS(at, bytes);
  } else {
    MEMORY_CLOSES(at, bytes);
  }
}

extern "C" size_t plimsoll_fibers_kernels(const char** names, size_t most) {
  size_t n = 0;
  for (fibers::Kernel* k = fibers::Kernel::first; k; k = k->next, n++)
    if (n < most) names[n] = k->name;
  return n;
}
