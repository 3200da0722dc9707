// Runs a grid: blocks one after the other, the threads of a block as coroutines.
//
// A thread runs until it meets a collective of its warp or a barrier of its block. Then the
// others get there too, or the kernel is wrong.
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>

#include <stdexcept>

#include "runtime.h"

namespace emu {

Lane* lane;
Launch launch;
Block block;
uint32_t now;
std::map<std::string, int64_t> counts;

struct Argument {
  const char* name;
  void* data;       // null: a scalar
  int64_t bytes;    // or the scalar's value
  int written;
};

extern "C" void emu_kernel(Region** regions, const int64_t* scalars);

namespace {

const size_t kStack = 256 * 1024;

std::vector<Thread> threads;
std::vector<Region*> regions;
std::vector<int64_t> scalars;
unsigned char* stacks;
jmp_buf scheduler;
jmp_buf failed;
char* message;
int message_size;

void entry() {
  emu_kernel(regions.data(), scalars.data());
  thread()->state = State::kDone;
  _longjmp(scheduler, 1);
}

void resume(Thread& t) {
  lane = &t;
  if (_setjmp(scheduler)) return;
  if (t.started) _longjmp(t.jump, 1);
  t.started = true;
  getcontext(&t.start);
  t.start.uc_stack.ss_sp = stacks + t.index * kStack;
  t.start.uc_stack.ss_size = kStack;
  t.start.uc_link = nullptr;
  makecontext(&t.start, entry, 0);
  setcontext(&t.start);
}

void suspend(State state) {
  Thread* self = thread();
  self->state = state;
  if (_setjmp(self->jump) == 0) _longjmp(scheduler, 1);
}

const char* where(const Thread& t) {
  static char text[2][96];
  static int turn;
  char* out = text[turn ^= 1];
  const char* what = t.state == State::kDone      ? "at the kernel's end"
                     : t.state == State::kBarrier ? "at __syncthreads()"
                                                  : t.what.name;
  snprintf(out, sizeof(text[0]), "thread %d is at line %d (%s)", t.index, t.line, what);
  return out;
}

bool together(const Thread& a, const Thread& b) {
  if (a.state != b.state || a.state == State::kDone) return a.state == b.state;
  if (a.line != b.line) return false;
  return a.state == State::kBarrier || strcmp(a.what.name, b.what.name) == 0;
}

void execute(Thread* first, int size) {
  lane = first;
  if (size != kWarp) fail("%s needs a whole warp, this one has %d threads", first->what.name, size);
  Lane* lanes[kWarp];
  for (int i = 0; i < kWarp; ++i) lanes[i] = first + i;
  Collective what = first->what;
  what.execute(lanes, what.params);
  count(what.name);
}

// Run a warp until all of its threads are at a barrier or have finished.
void run_warp(Thread* first, int size) {
  while (true) {
    for (int i = 0; i < size; ++i)
      if (first[i].state == State::kReady) resume(first[i]);
    for (int i = 1; i < size; ++i) {
      if (together(first[0], first[i])) continue;
      lane = &first[i];
      fail("diverged warp: %s, %s", where(first[0]), where(first[i]));
    }
    if (first->state != State::kCollective) return;
    execute(first, size);
    for (int i = 0; i < size; ++i) first[i].state = State::kReady;
  }
}

void pass_barrier() {
  for (Thread& t : threads) {
    if (together(threads[0], t)) continue;
    lane = &t;
    fail("barrier not reached by all threads: %s, %s", where(threads[0]), where(t));
  }
  block.barrier_time = ++now;
}

void start_block(int index) {
  block.index = index;
  block.barrier_time = ++now;
  block.warp_time.assign((threads.size() + kWarp - 1) / kWarp, now);
  launch.block.x = index % launch.grid_dim.x;
  launch.block.y = index / launch.grid_dim.x % launch.grid_dim.y;
  launch.block.z = index / launch.grid_dim.x / launch.grid_dim.y;
  const Dim& d = launch.block_dim;
  for (size_t i = 0; i < threads.size(); ++i) {
    Thread& t = threads[i];
    t.index = (int)i;
    t.line = 0;
    t.thread = Dim{(unsigned)i % d.x, (unsigned)i / d.x % d.y, (unsigned)i / d.x / d.y};
    t.state = State::kReady;
    t.started = false;
    t.uncommitted.clear();
    t.groups.clear();
  }
}

void run_block(int index, int64_t dynamic_bytes) {
  start_block(index);
  reset_shared(dynamic_bytes);
  while (true) {
    for (size_t i = 0; i < threads.size(); i += kWarp)
      run_warp(&threads[i], (int)(threads.size() - i < kWarp ? threads.size() - i : kWarp));
    pass_barrier();
    if (threads[0].state == State::kDone) return;
    count("barrier");
    for (Thread& t : threads) t.state = State::kReady;
  }
}

}  // namespace

void fail(const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof(text), format, args);
  va_end(args);
  const Dim& b = launch.block;
  const Dim& t = lane->thread;
  snprintf(message, message_size, "%d|block (%u, %u, %u), thread (%u, %u, %u): %s", lane->line, b.x, b.y,
           b.z, t.x, t.y, t.z, text);
  _longjmp(failed, 1);
}

void count(const char* event, int64_t amount) { counts[event] += amount; }

void barrier() { suspend(State::kBarrier); }

void collective(const Collective& what) {
  thread()->what = what;
  suspend(State::kCollective);
}

void sync_warp() {
  collective(Collective{"__syncwarp", [](Lane** lanes, const int*) {
    block.warp_time[lanes[0]->index / kWarp] = ++now;
  }, {}});
}

extern "C" __attribute__((visibility("default"))) int emu_launch(
    const unsigned* grid, const unsigned* block_dim, int64_t dynamic_bytes, const Argument* arguments,
    int argument_count, const int* blocks, int block_count, char* text, int text_size) {
  launch.grid_dim = Dim{grid[0], grid[1], grid[2]};
  launch.block_dim = Dim{block_dim[0], block_dim[1], block_dim[2]};
  message = text;
  message_size = text_size;
  counts.clear();
  reset_globals();
  regions.clear();
  scalars.clear();
  for (int i = 0; i < argument_count; ++i) {
    const Argument& a = arguments[i];
    regions.push_back(a.data ? add_global(a.name, a.data, a.bytes, a.written) : nullptr);
    scalars.push_back(a.data ? 0 : a.bytes);
  }
  size_t n = (size_t)block_dim[0] * block_dim[1] * block_dim[2];
  threads = std::vector<Thread>(n);
  stacks = (unsigned char*)mmap(nullptr, n * kStack, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) return 2;
  volatile int status = 0;
  if (_setjmp(failed) == 0) {
    for (int i = 0; i < block_count; ++i) run_block(blocks[i], dynamic_bytes);
  } else {
    status = 1;
  }
  munmap(stacks, n * kStack);
  threads.clear();
  return status;
}

extern "C" __attribute__((visibility("default"))) int emu_counts(char* text, int size) {
  int used = 0;
  for (const auto& item : counts)
    used += snprintf(text + used, used < size ? size - used : 0, "%s=%lld\n", item.first.c_str(), (long long)item.second);
  return used;
}

}  // namespace emu
