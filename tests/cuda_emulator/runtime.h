// What the parts of the runtime share and kernels do not see.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <deque>
#include <map>
#include <string>
#include <vector>

#include "memory.h"

namespace emu {

const int kWarp = 32;
const int kMaxThreads = 1024;
const int kHost = -1;   // as a writer: before the kernel ran
const int kNobody = -2;

// Who touched a byte last, and when. Time is a counter that every barrier advances.
struct Shadow {
  int32_t writer, reader;   // block * kMaxThreads + thread; or a group, see memory.cpp
  uint32_t write_time, read_time;
  bool written, pending, atomic;
};

struct AsyncCopy {
  Region* region;
  int64_t offset;
  int size;
  unsigned char bytes[16];
};

enum class State { kReady, kCollective, kBarrier, kDone };

struct Thread : Lane {
  State state;
  bool started;
  Collective what;
  jmp_buf jump;
  ucontext_t start;
  std::vector<AsyncCopy> uncommitted;
  std::deque<std::vector<AsyncCopy>> groups;
};

struct Block {
  int index;
  uint32_t barrier_time;
  std::vector<uint32_t> warp_time;   // of each warp's last __syncwarp
};

extern Block block;
extern uint32_t now;
extern std::map<std::string, int64_t> counts;

inline Thread* thread() { return static_cast<Thread*>(lane); }
inline int thread_id() { return block.index * kMaxThreads + lane->index; }

void reset_shared(int64_t dynamic_bytes);
void reset_globals();
Region* add_global(const char* name, void* data, int64_t bytes, bool written);
void finish_copy(const AsyncCopy& copy);
unsigned char* check_async(Region* region, int64_t offset, int size);

}  // namespace emu
