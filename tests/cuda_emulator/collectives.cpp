// Tensor-core and other warp instructions, and asynchronous copies.
#include <stdio.h>

#include "runtime.h"

namespace emu {

namespace {

// A fragment register of a lane is the 4 bytes at byte 4 * (lane & 3) of row lane >> 2; the
// second half of the rows, then the second half of k, in the registers that follow.
void gather(Lane** lanes, int first, int rows, int row_bytes, unsigned char* out) {
  int halves = rows / 8;
  for (int l = 0; l < kWarp; ++l) {
    for (int r = 0; r < halves * row_bytes / 16; ++r) {
      int row = (l >> 2) + 8 * (r % halves);
      memcpy(out + row * row_bytes + 4 * (l & 3) + 16 * (r / halves), &lanes[l]->in[first + r], 4);
    }
  }
}

void unpack(const unsigned char* bytes, int count, int bits, bool is_signed, int16_t* out) {
  for (int i = 0; i < count; ++i) {
    int v = bits == 8 ? bytes[i] : (bytes[i / 2] >> (4 * (i % 2))) & 15;
    out[i] = (int16_t)(is_signed && v >> (bits - 1) ? v - (1 << bits) : v);
  }
}

int64_t clamp32(int64_t v) { return v > INT32_MAX ? INT32_MAX : v < INT32_MIN ? INT32_MIN : v; }

// Bytes of a shared row for ldmatrix, checked for each of the four lanes that receive 4 of them.
void read_row(Lane** lanes, uint32_t address, int row, int reg) {
  int64_t offset;
  Region* region = shared_at(address, &offset);
  for (int t = 0; t < 4; ++t) {
    lane = lanes[4 * row + t];
    int align = t == 0 ? 16 : 4;
    memcpy(&lane->out[reg], load(region, offset + 4 * t, 4, align), 4);
  }
}

}  // namespace

// params: m, k, bits, a is signed, b is signed, saturate, first register of b, of c
void mma(Lane** lanes, const int* p) {
  const int m = p[0], k = p[1], bits = p[2], row_bytes = k * bits / 8;
  unsigned char a_bytes[16 * 32], b_bytes[8 * 32];
  int16_t a[16 * 64], b[8 * 64];
  gather(lanes, 0, m, row_bytes, a_bytes);
  gather(lanes, p[6], 8, row_bytes, b_bytes);
  unpack(a_bytes, m * k, bits, p[3], a);
  unpack(b_bytes, 8 * k, bits, p[4], b);
  for (int l = 0; l < kWarp; ++l) {
    for (int i = 0; i < m / 4; ++i) {
      const int16_t* row = a + ((l >> 2) + 8 * (i >> 1)) * k;
      const int16_t* col = b + (2 * (l & 3) + (i & 1)) * k;
      int32_t dot = 0;
      for (int j = 0; j < k; ++j) dot += (int32_t)row[j] * col[j];
      int64_t sum = (int64_t)(int32_t)lanes[l]->in[p[7] + i] + dot;
      lanes[l]->out[i] = (uint32_t)(p[5] ? clamp32(sum) : sum);
    }
  }
}

// params: number of 8x8 matrices, whether every lane's address must be valid (sm_75)
void ldmatrix(Lane** lanes, const int* p) {
  for (int l = 0; l < (p[1] ? kWarp : 8 * p[0]); ++l) {
    int64_t offset;
    lane = lanes[l];
    Region* region = shared_at(lane->in[0], &offset);
    if (lane->in[0] % 16) fail("misaligned ldmatrix: a row at byte %lld of '%s'", (long long)offset, region->name);
  }
  for (int reg = 0; reg < p[0]; ++reg) {
    int rows_in_bank[8] = {};
    int cycles = 1;
    for (int row = 0; row < 8; ++row) {
      uint32_t address = lanes[8 * reg + row]->in[0];
      read_row(lanes, address, row, reg);
      int used = ++rows_in_bank[address / 16 % 8];
      if (used > cycles) cycles = used;
    }
    if (cycles > 1) count("ldmatrix bank conflicts", cycles - 1);
  }
}

// params: mode, width of a segment
void shuffle(Lane** lanes, const int* p) {
  for (int l = 0; l < kWarp; ++l) {
    int n = (int)lanes[l]->in[1], width = p[1], base = l / width * width;
    int source = p[0] == 0 ? base + n % width : p[0] == 1 ? l - n : p[0] == 2 ? l + n : l ^ n;
    bool inside = source >= base && source < base + width;
    lanes[l]->out[0] = lanes[inside ? source : l]->in[0];
  }
}

void cp_async(uint32_t dst, uint64_t src, int size, int64_t src_size, int min_size) {
  if (size != 4 && size != 8 && size != 16) fail("cp.async of %d bytes: 4, 8 or 16 are possible", size);
  if (size < min_size) fail("cp.async.cg copies 16 bytes, not %d", size);
  if (src_size < 0 || src_size > size) fail("cp.async: source size %lld of %d bytes", (long long)src_size, size);
  AsyncCopy copy;
  copy.region = shared_at(dst, &copy.offset);
  copy.size = size;
  memset(copy.bytes, 0, sizeof(copy.bytes));
  if (src % size) fail("misaligned cp.async: a source address is not a multiple of %d bytes", size);
  if (src_size > 0) {
    int64_t offset;
    Region* from = global_at(src, &offset);
    memcpy(copy.bytes, load(from, offset, (int)src_size, 1), src_size);
  }
  check_async(copy.region, copy.offset, size);
  thread()->uncommitted.push_back(copy);
  count(size == 16 ? "cp.async.16" : size == 8 ? "cp.async.8" : "cp.async.4");
}

void cp_async_commit() {
  Thread* t = thread();
  t->groups.push_back(std::move(t->uncommitted));
  t->uncommitted.clear();
}

void cp_async_wait(int pending) {
  std::deque<std::vector<AsyncCopy>>& groups = thread()->groups;
  while ((int)groups.size() > pending) {
    for (const AsyncCopy& copy : groups.front()) finish_copy(copy);
    groups.pop_front();
  }
}

void cp_async_wait_all() {
  cp_async_commit();
  cp_async_wait(0);
}

}  // namespace emu
