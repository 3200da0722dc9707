// Checked memory: bounds, alignment, uninitialised reads, and races between threads.
#include <memory>

#include "runtime.h"

namespace emu {

namespace {

const int kSharedShift = 20;      // each shared array has its own megabyte of addresses
const int kGlobalShift = 40;      // and each argument its own terabyte
const int kDynamicIndex = 4000;
const int kEverybody = -3;        // as a reader: threads of several blocks

struct Storage {
  Region region;
  std::string name;
  std::vector<unsigned char> bytes;
  std::vector<Shadow> shadow;
};

std::map<int, std::unique_ptr<Storage>> shared;
std::vector<std::unique_ptr<Storage>> globals;
int64_t dynamic_bytes;

// Readers of several threads are kept as one group: a warp, a block, or everybody.
int block_group(int b) { return -10 - b * (kWarp + 1); }
int warp_group(int id) { return block_group(id / kMaxThreads) - 1 - (id % kMaxThreads) / kWarp; }
int block_of(int who) { return who >= 0 ? who / kMaxThreads : (-10 - who) / (kWarp + 1); }
int warp_of(int who) {
  return who >= 0 ? (who % kMaxThreads) / kWarp : (-10 - who) % (kWarp + 1) - 1;
}

// Whether what `who` did at `time` is certain to be over before what the running thread does.
bool ordered(int who, uint32_t time) {
  if (who == kHost || who == kNobody || who == thread_id()) return true;
  if (who == kEverybody || block_of(who) != block.index) return false;
  if (time < block.barrier_time) return true;
  return warp_of(who) == lane->index / kWarp && time < block.warp_time[lane->index / kWarp];
}

int join_readers(int who) {
  int me = thread_id();
  if (who == kEverybody || block_of(who) != block.index) return kEverybody;
  if (warp_of(who) == warp_of(me)) return warp_group(me);
  return block_group(block.index);
}

std::string describe(int who) {
  char text[96];
  if (who == kEverybody) return "threads of several blocks";
  if (who < 0) {
    int w = warp_of(who);
    if (w < 0) return "several threads of the block";
    snprintf(text, sizeof(text), "several threads of warp %d", w);
  } else if (block_of(who) != block.index) {
    snprintf(text, sizeof(text), "thread %d of block %d", who % kMaxThreads, block_of(who));
  } else {
    snprintf(text, sizeof(text), "thread %d", who % kMaxThreads);
  }
  return text;
}

const char* space_name(const Region* r) {
  return r->space == Region::kGlobal ? "global" : r->space == Region::kShared ? "shared" : "local";
}

void check_range(const char* action, Region* r, int64_t offset, int size, int align) {
  if (offset < 0 || offset + size > r->size)
    fail("out-of-bounds %s: bytes %lld to %lld of %s array '%s', which has %lld", action,
         (long long)offset, (long long)offset + size - 1, space_name(r), r->name, (long long)r->size);
  if ((r->base + (uint64_t)offset) % align)
    fail("misaligned %s: %d bytes at byte %lld of %s array '%s' need an alignment of %d", action,
         size, (long long)offset, space_name(r), r->name, align);
}

void check_write(const char* action, Region* r, int64_t offset, int size, const void* value) {
  const unsigned char* bytes = static_cast<const unsigned char*>(value);
  for (int i = 0; i < size; ++i) {
    Shadow& s = r->shadow[offset + i];
    if (s.pending)
      fail("%s to byte %lld of '%s' while a cp.async of %s to it is in flight", action,
           (long long)(offset + i), r->name, describe(s.writer).c_str());
    if (!ordered(s.reader, s.read_time))
      fail("race: %s to byte %lld of '%s' that %s read with no barrier between", action,
           (long long)(offset + i), r->name, describe(s.reader).c_str());
    bool same = bytes && bytes[i] == r->data[offset + i];
    if (!same && !ordered(s.writer, s.write_time))
      fail("race: %s to byte %lld of '%s' that %s wrote with no barrier between", action,
           (long long)(offset + i), r->name, describe(s.writer).c_str());
  }
}

void mark_written(Region* r, int64_t offset, int size) {
  for (int i = 0; i < size; ++i) {
    Shadow& s = r->shadow[offset + i];
    s.writer = thread_id();
    s.write_time = now;
    s.written = true;
    s.atomic = false;
  }
}

Storage* make(const char* name, Region::Space space, int64_t bytes, uint64_t base) {
  Storage* s = new Storage;
  s->name = name;
  s->bytes.assign(bytes, 0xa5);
  s->shadow.assign(bytes, Shadow{kNobody, kNobody, 0, 0, false, false, false});
  s->region = Region{s->name.c_str(), space, s->bytes.data(), bytes, base, s->shadow.data(), nullptr};
  return s;
}

Region* shared_slot(int index, const char* name, int64_t bytes, int align) {
  std::unique_ptr<Storage>& slot = shared[index];
  // No more aligned than declared: what relies on luck fails.
  uint64_t base = ((uint64_t)(index + 1) << kSharedShift) + align;
  if (!slot) slot.reset(make(name, Region::kShared, bytes, base));
  return &slot->region;
}

}  // namespace

const unsigned char* load(Region* r, int64_t offset, int size, int align) {
  if (!r) return reinterpret_cast<const unsigned char*>(offset);
  check_range("read", r, offset, size, align);
  if (r->space == Region::kLocal) {
    for (int i = 0; i < size; ++i)
      if (!r->written[offset + i])
        fail("uninitialised read: byte %lld of local array '%s'", (long long)offset + i, r->name);
    return r->data + offset;
  }
  int me = thread_id();
  for (int i = 0; i < size; ++i) {
    Shadow& s = r->shadow[offset + i];
    if (s.pending)
      fail("read of byte %lld of '%s' before the cp.async of %s to it was waited for",
           (long long)offset + i, r->name, describe(s.writer).c_str());
    if (!s.written)
      fail("uninitialised read: byte %lld of %s array '%s'", (long long)offset + i, space_name(r), r->name);
    if (!ordered(s.writer, s.write_time))
      fail("race: read of byte %lld of '%s' that %s wrote with no barrier between",
           (long long)offset + i, r->name, describe(s.writer).c_str());
    s.reader = ordered(s.reader, s.read_time) ? me : join_readers(s.reader);
    s.read_time = now;
  }
  return r->data + offset;
}

unsigned char* store(Region* r, int64_t offset, int size, int align, const void* value) {
  if (!r) return reinterpret_cast<unsigned char*>(offset);
  check_range("write", r, offset, size, align);
  if (r->space == Region::kLocal) {
    memset(r->written + offset, 1, size);
  } else {
    check_write("write", r, offset, size, value);
    mark_written(r, offset, size);
  }
  return r->data + offset;
}

unsigned char* atomic(Region* r, int64_t offset, int size, int align) {
  if (!r || r->space == Region::kLocal) fail("an atomic operation on a thread's own memory");
  check_range("atomic operation", r, offset, size, align);
  for (int i = 0; i < size; ++i) {
    Shadow& s = r->shadow[offset + i];
    if (!s.written) fail("uninitialised read: byte %lld of '%s'", (long long)offset + i, r->name);
    if (!s.atomic) check_write("atomic operation", r, offset + i, 1, nullptr);
    mark_written(r, offset + i, 1);
    s.atomic = true;
  }
  return r->data + offset;
}

unsigned char* check_async(Region* r, int64_t offset, int size) {
  check_range("cp.async", r, offset, size, size);
  check_write("cp.async", r, offset, size, nullptr);
  for (int i = 0; i < size; ++i) {
    r->shadow[offset + i].pending = true;
    r->shadow[offset + i].writer = thread_id();
  }
  return r->data + offset;
}

void finish_copy(const AsyncCopy& copy) {
  memcpy(copy.region->data + copy.offset, copy.bytes, copy.size);
  mark_written(copy.region, copy.offset, copy.size);
  for (int i = 0; i < copy.size; ++i) copy.region->shadow[copy.offset + i].pending = false;
}

uint64_t address_of(Region* r, int64_t offset) {
  return r ? r->base + (uint64_t)offset : (uint64_t)offset;
}

Region* global_at(uint64_t address, int64_t* offset) {
  uint64_t index = (address >> kGlobalShift) - 1;
  if (index >= globals.size()) fail("0x%llx is no address of global memory", (unsigned long long)address);
  *offset = (int64_t)(address - globals[index]->region.base);
  return &globals[index]->region;
}

Region* shared_at(uint32_t address, int64_t* offset) {
  auto slot = shared.find((int)(address >> kSharedShift) - 1);
  if (slot == shared.end()) fail("0x%x is no address of shared memory", address);
  *offset = (int64_t)address - (int64_t)slot->second->region.base;
  return &slot->second->region;
}

Region* shared_region(int index, const char* name, int64_t bytes, int align) {
  return shared_slot(index, name, bytes, align);
}

Region* dynamic_region(int align) {
  return shared_slot(kDynamicIndex, "dynamic shared memory", dynamic_bytes, align);
}

Region* add_global(const char* name, void* data, int64_t bytes, bool written) {
  uint64_t base = ((uint64_t)(globals.size() + 1) << kGlobalShift) + 16;
  globals.emplace_back(make(name, Region::kGlobal, bytes, base));
  Storage& s = *globals.back();
  s.region.data = static_cast<unsigned char*>(data);
  for (Shadow& byte : s.shadow) {
    byte.writer = kHost;
    byte.written = written;
  }
  return &s.region;
}

void reset_shared(int64_t bytes) {
  shared.clear();
  dynamic_bytes = bytes;
}

void reset_globals() { globals.clear(); }

}  // namespace emu
