// SPDX-License-Identifier: MIT
// The scheduler of the SIMT machine. ThreadSanitizer must not watch this file (CMakeLists.txt
// leaves it uninstrumented): what it shares between fibers would order them and hide their races.
#include "simt/simt.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(FASTDISTILL_SIMT_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace simt {
namespace {

using fastdistill::platform::kSharedBytesWithoutAsking;

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr int kResidentBlocks = 3;
constexpr int kFibers = kMaxThreads * kResidentBlocks;
constexpr std::size_t kStackBytes = 128 * 1024;
constexpr std::size_t kStaticBytes = 16 * 1024;
constexpr int kMaxStatics = 16;
constexpr int kMaxSites = 64;
constexpr int kMaxCopies = 128;

[[noreturn]] void die(const char* reason) {
  std::fprintf(stderr, "simt: %s\n", reason);
  std::abort();
}

// The edges that ThreadSanitizer is told of; elsewhere they mean nothing.
void release(void* address) {
#if defined(FASTDISTILL_SIMT_TSAN)
  __tsan_release(address);
#else
  (void)address;
#endif
}
void acquire(void* address) {
#if defined(FASTDISTILL_SIMT_TSAN)
  __tsan_acquire(address);
#else
  (void)address;
#endif
}

struct Warp {
  std::uint64_t values[2][kWarp];  // turns alternate, so no lane overwrites what others still read
  int arrived;
};

struct Block {
  unsigned index;
  int unfinished;
  int arrived;
  char edges[2];  // of alternate barriers: a fast thread's next arrival is not ordered before us
  int first_fiber;
  unsigned char* dynamic_memory;
  unsigned char* static_memory;
  std::size_t static_used;
  int statics;
  const void* static_keys[kMaxStatics];
  void* static_places[kMaxStatics];
  Warp warps[kMaxThreads / kWarp];
};

struct Fiber {
  ucontext_t context;
  void* stack;
  void* sanitizer_state;
  void* fake_stack;
  Block* block;
  int thread;
  int barriers;
  int shuffles;
  int copies_begun;
  int copies_taken;
  Copy copies[kMaxCopies];
  bool finished;
};

struct Launch {
  unsigned blocks;
  int threads;
  std::size_t shared_bytes;
  bool asked;
  void (*body)(void*);
  void* context;
};

Fiber* fibers[kFibers];
Fiber scheduler;
Fiber* current = &scheduler;
int ready[kFibers];
int ready_count;
Launch launch_now;
char start_edge;
char end_edge;
char fence_edge;
const char* site_files[kMaxSites];
int site_lines[kMaxSites];
char site_names[kMaxSites][128];
const char* sites[kMaxSites + 1];
int site_count;
std::uint64_t random_state;

std::uint64_t random_below(std::uint64_t bound) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state % bound;
}

void switch_to(Fiber* next) {
  Fiber* previous = current;
  current = next;
#if defined(FASTDISTILL_SIMT_TSAN)
  __tsan_switch_to_fiber(next->sanitizer_state, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&previous->fake_stack, next->stack, kStackBytes);
#endif
  swapcontext(&previous->context, &next->context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(previous->fake_stack, nullptr, nullptr);
#endif
}

void make_ready(int fiber) { ready[ready_count++] = fiber; }
int number_of(const Fiber* fiber) { return fiber->block->first_fiber + fiber->thread; }
void give_way() {
  make_ready(number_of(current));
  switch_to(&scheduler);
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  std::size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  scheduler.stack = const_cast<void*>(bottom);
#endif
  for (;;) {
    acquire(&start_edge);
    launch_now.body(launch_now.context);
    release(&end_edge);
    if (current->copies_begun != 0) die("a thread ended with copies on their way");
    current->finished = true;
    switch_to(&scheduler);
  }
}

void make_fiber(int number) {
  if (fibers[number] != nullptr) return;
  fibers[number] = static_cast<Fiber*>(std::calloc(1, sizeof(Fiber)));
  Fiber& fiber = *fibers[number];
  fiber.stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (fiber.stack == MAP_FAILED) die("out of memory for stacks");
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
#if defined(FASTDISTILL_SIMT_TSAN)
  fiber.sanitizer_state = __tsan_create_fiber(0);
#endif
}

void start_block(Block* block, int first_fiber) {
  block->first_fiber = first_fiber;
  block->unfinished = launch_now.threads;
  for (int thread = 0; thread < launch_now.threads; ++thread) {
    make_fiber(first_fiber + thread);
    Fiber* fiber = fibers[first_fiber + thread];
    fiber->block = block;
    fiber->thread = thread;
    fiber->barriers = 0;
    fiber->shuffles = 0;
    fiber->finished = false;
    make_ready(first_fiber + thread);
  }
}

// Whether this barrier or fence is to be obeyed.
bool visit_site(const char* file, int line) {
  int site = 0;
  while (site < site_count && (site_files[site] != file || site_lines[site] != line)) ++site;
  if (site == site_count) {
    if (site_count == kMaxSites) die("too many barriers in the source");
    const char* slash = std::strrchr(file, '/');
    std::snprintf(site_names[site], sizeof(site_names[site]), "%.100s:%d",
                  slash == nullptr ? file : slash + 1, line);
    site_files[site] = file;
    site_lines[site] = line;
    sites[site_count++] = site_names[site];
  }
  return machine().skip_site == nullptr || std::strcmp(machine().skip_site, sites[site]) != 0;
}

// Runs the blocks in random order, a few at a time, and their threads one by one at random.
void schedule(Block* blocks, const unsigned* order) {
  const unsigned resident =
      launch_now.blocks < kResidentBlocks ? launch_now.blocks : unsigned{kResidentBlocks};
  unsigned started = 0;
  for (; started < resident; ++started) {
    start_block(blocks + order[started], static_cast<int>(started) * kMaxThreads);
  }
  unsigned finished = 0;
  while (finished < launch_now.blocks) {
    if (ready_count == 0) die("deadlock: a barrier or shuffle that some threads never reach");
    const int picked = static_cast<int>(random_below(static_cast<std::uint64_t>(ready_count)));
    Fiber* fiber = fibers[ready[picked]];
    ready[picked] = ready[--ready_count];
    switch_to(fiber);
    if (!fiber->finished || --fiber->block->unfinished > 0) continue;
    ++finished;
    if (started < launch_now.blocks)
      start_block(blocks + order[started++], fiber->block->first_fiber);
  }
}

}  // namespace

Machine& machine() {
  static Machine machine;
  return machine;
}

const char* const* executed_sites() { return sites; }

Index thread_index() { return {static_cast<unsigned>(current->thread)}; }
Index block_index() { return {current->block->index}; }
Index block_size() { return {static_cast<unsigned>(launch_now.threads)}; }
Index grid_size() { return {launch_now.blocks}; }

void barrier(const char* file, int line) {
  if (!visit_site(file, line)) return;
  Fiber* self = current;
  Block* block = self->block;
  char* edge = &block->edges[self->barriers++ & 1];
  release(edge);
  if (++block->arrived == launch_now.threads) {
    block->arrived = 0;
    for (int i = 0; i < launch_now.threads; ++i) make_ready(block->first_fiber + i);
  }
  switch_to(&scheduler);
  acquire(edge);
}

// Two fences order what came before the one with what comes after the other.
void fence(const char* file, int line) {
  if (!visit_site(file, line)) return;
  release(&fence_edge);
  give_way();
  acquire(&fence_edge);
}

unsigned atomic_increment(unsigned* counter, unsigned limit) {
  give_way();
  const unsigned before = *counter;  // fibers give way only where they say so
  *counter = before >= limit ? 0 : before + 1;
  return before;
}

std::uint64_t shuffle(std::uint64_t bits, unsigned source_lane) {
  Fiber* self = current;
  Warp* warp = self->block->warps + self->thread / kWarp;
  std::uint64_t* values = warp->values[self->shuffles++ & 1];
  values[self->thread % kWarp] = bits;
  if (++warp->arrived == kWarp) {
    warp->arrived = 0;
    const int first = number_of(self) - self->thread % kWarp;
    for (int lane = 0; lane < kWarp; ++lane) {
      if (lane != self->thread % kWarp) make_ready(first + lane);
    }
  } else {
    switch_to(&scheduler);
  }
  return values[source_lane];
}

void begin_copy(const Copy& copy) {
  if (current->copies_begun == kMaxCopies) die("too many copies at once");
  current->copies[current->copies_begun++] = copy;
}

const Copy* take_copy() {
  if (current->copies_taken < current->copies_begun)
    return current->copies + current->copies_taken++;
  current->copies_begun = current->copies_taken = 0;
  return nullptr;
}

void* dynamic_shared() { return current->block->dynamic_memory; }

void* static_shared(const void* key, std::size_t bytes) {
  Block* block = current->block;
  for (int i = 0; i < block->statics; ++i) {
    if (block->static_keys[i] == key) return block->static_places[i];
  }
  const std::size_t rounded = (bytes + 15) / 16 * 16;
  if (block->statics == kMaxStatics || block->static_used + rounded > kStaticBytes) {
    die("too much static shared memory");
  }
  if (!launch_now.asked && block->static_used + rounded + launch_now.shared_bytes >
                               static_cast<std::size_t>(kSharedBytesWithoutAsking)) {
    die("more shared memory than a block gets without asking");
  }
  void* place = block->static_memory + block->static_used;
  block->static_used += rounded;
  block->static_keys[block->statics] = key;
  block->static_places[block->statics++] = place;
  return place;
}

void run(std::int64_t blocks, int threads, std::size_t shared_bytes, bool asked,
         void (*body)(void*), void* context) {
  if (current != &scheduler) die("a kernel cannot launch a kernel");
  if (blocks < 1 || blocks > 65535 || threads < kWarp || threads > kMaxThreads ||
      threads % kWarp != 0) {
    die("grid out of range");
  }
  if (shared_bytes > static_cast<std::size_t>(machine().shared_bytes_per_block)) {
    die("too much dynamic shared memory");
  }
  ++machine().launches;
  random_state = machine().seed * 2654435761u + static_cast<std::uint64_t>(machine().launches);
  launch_now = {static_cast<unsigned>(blocks), threads, shared_bytes, asked, body, context};
  // All memory exists before the launch and is full of NaN; its exact size lets ASan see an
  // overrun.
  const std::size_t count = static_cast<std::size_t>(blocks);
  Block* all = static_cast<Block*>(std::calloc(count, sizeof(Block)));
  unsigned* order = static_cast<unsigned*>(std::malloc(count * sizeof(unsigned)));
  for (std::size_t i = 0; i < count; ++i) {
    all[i].index = static_cast<unsigned>(i);
    all[i].dynamic_memory = static_cast<unsigned char*>(std::malloc(shared_bytes));
    all[i].static_memory = static_cast<unsigned char*>(std::malloc(kStaticBytes));
    if (shared_bytes > 0) std::memset(all[i].dynamic_memory, 0xFF, shared_bytes);
    std::memset(all[i].static_memory, 0xFF, kStaticBytes);
    const std::size_t other = random_below(i + 1);
    order[i] = order[other];
    order[other] = static_cast<unsigned>(i);
  }
#if defined(FASTDISTILL_SIMT_TSAN)
  scheduler.sanitizer_state = __tsan_get_current_fiber();
#endif
  release(&start_edge);
  schedule(all, order);
  acquire(&end_edge);
  for (std::size_t i = 0; i < count; ++i) {
    std::free(all[i].dynamic_memory);
    std::free(all[i].static_memory);
  }
  std::free(order);
  std::free(all);
}

}  // namespace simt

namespace fastdistill::platform {

namespace {
// To nearest, ties to even: nearbyint in units of the last place.
std::uint16_t narrow(float value, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int infinity = ((1 << exponent_bits) - 1) << mantissa_bits;
  const int sign = std::signbit(value) ? 0x8000 : 0;
  int bits;
  if (std::isnan(value)) {
    bits = infinity | 1 << (mantissa_bits - 1);
  } else if (std::isinf(value)) {
    bits = infinity;
  } else if (value == 0) {
    bits = 0;
  } else {
    int exponent = std::ilogb(value) < 1 - bias ? 1 - bias : std::ilogb(value);
    const float units = std::nearbyint(std::ldexp(std::fabs(value), mantissa_bits - exponent));
    // Adding lets a mantissa that rounds up carry into the exponent.
    bits = ((exponent + bias - 1) << mantissa_bits) + static_cast<int>(units);
    if (bits > infinity) bits = infinity;
  }
  return static_cast<std::uint16_t>(sign | bits);
}
}  // namespace

float widen_float16(std::uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31);
  const float mantissa = static_cast<float>(bits & 1023) / 1024;
  float magnitude =
      std::ldexp(exponent == 0 ? mantissa : 1 + mantissa, exponent == 0 ? -14 : exponent - 15);
  if (exponent == 31) magnitude = mantissa == 0 ? INFINITY : NAN;
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

std::uint16_t narrow_bfloat16(float value) { return narrow(value, 8); }
std::uint16_t narrow_float16(float value) { return narrow(value, 5); }

}  // namespace fastdistill::platform
