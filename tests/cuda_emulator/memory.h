// The runtime's interface: regions of memory, checked accesses, the running thread, collectives.
#pragma once

#include <stdint.h>
#include <string.h>

namespace emu {

struct Shadow;

// An array of the kernel. Addresses that kernels can see (of inline PTX) are `base` + offset.
struct Region {
  enum Space : uint8_t { kGlobal, kShared, kLocal };
  const char* name;
  Space space;
  unsigned char* data;
  int64_t size;
  uint64_t base;
  Shadow* shadow;           // one per byte: global and shared memory
  unsigned char* written;   // one per byte: local memory
};

struct Dim { unsigned x, y, z; };

// One instruction that the 32 lanes of a warp execute together.
struct Lane;
struct Collective {
  const char* name;
  void (*execute)(Lane** lanes, const int* params);
  int params[8];
};

struct Lane {
  Dim thread;
  int index;        // in the block
  int line;         // of the kernel's source
  uint32_t in[16];  // operands and results of a collective
  uint32_t out[8];
};

struct Launch { Dim grid_dim, block_dim, block; };

extern Lane* lane;      // the running thread
extern Launch launch;

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
void count(const char* event, int64_t amount = 1);

// Host address of bytes that the running thread may read or overwrite; fails where it may not.
const unsigned char* load(Region* region, int64_t offset, int size, int align);
unsigned char* store(Region* region, int64_t offset, int size, int align, const void* value);
unsigned char* atomic(Region* region, int64_t offset, int size, int align);

uint64_t address_of(Region* region, int64_t offset);
Region* shared_region(int index, const char* name, int64_t bytes, int align);
Region* dynamic_region(int align);
Region* global_at(uint64_t address, int64_t* offset);
Region* shared_at(uint32_t address, int64_t* offset);

void barrier();
void sync_warp();
void collective(const Collective& what);

void mma(Lane** lanes, const int* params);
void ldmatrix(Lane** lanes, const int* params);
void shuffle(Lane** lanes, const int* params);
void cp_async(uint32_t dst, uint64_t src, int size, int64_t src_size, int min_size);
void cp_async_commit();
void cp_async_wait(int pending);
void cp_async_wait_all();

}  // namespace emu
