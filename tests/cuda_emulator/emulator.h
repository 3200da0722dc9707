// What translated kernels are compiled against: CUDA's types and built-ins over checked memory.
//
// A pointer of the kernel becomes P<T>: a region and an offset. Every access goes through the
// runtime, which knows for each byte who wrote and read it last (memory.cpp).
#pragma once

#include "memory.h"
#include "vector_types.h"

#define __device__
#define __global__
#define __forceinline__ inline
#define __restrict__
#define threadIdx (emu::lane->thread)
#define blockIdx (emu::launch.block)
#define blockDim (emu::launch.block_dim)
#define gridDim (emu::launch.grid_dim)
#define __syncthreads() emu::barrier()
#define __syncwarp(...) emu::sync_warp()

typedef unsigned int uint;
typedef unsigned char uchar;
typedef unsigned short ushort;

namespace emu {

template <class T> struct Size { enum { value = sizeof(T) }; };
template <> struct Size<void> { enum { value = 1 }; };
template <class T> struct Same { typedef T type; };

template <class T> struct P;
template <class T, int N> struct Local;

// An element of memory: reading and writing it are what the runtime checks.
template <class T> struct Ref {
  Region* region;
  int64_t offset;

  operator T() const {
    T value;
    memcpy(&value, load(region, offset, sizeof(T), alignof(T)), sizeof(T));
    return value;
  }
  T set(T value) const {
    memcpy(store(region, offset, sizeof(T), alignof(T), &value), &value, sizeof(T));
    return value;
  }
  T operator=(T value) const { return set(value); }
  T operator=(const Ref& other) const { return set(T(other)); }
  template <class U> T operator+=(U v) const { return set(T(*this) + v); }
  template <class U> T operator-=(U v) const { return set(T(*this) - v); }
  template <class U> T operator*=(U v) const { return set(T(*this) * v); }
  template <class U> T operator|=(U v) const { return set(T(*this) | v); }
  template <class U> T operator&=(U v) const { return set(T(*this) & v); }
  template <class U> T operator^=(U v) const { return set(T(*this) ^ v); }
  template <class U> T operator<<=(U v) const { return set(T(*this) << v); }
  template <class U> T operator>>=(U v) const { return set(T(*this) >> v); }
  P<T> operator&() const;
};

template <class T> struct P {
  Region* region;   // null: a raw host pointer, to a scalar variable of the kernel
  int64_t offset;

  P() : region(nullptr), offset(0) {}
  P(Region* r, int64_t o) : region(r), offset(o) {}
  explicit P(T* raw) : region(nullptr), offset((int64_t)raw) {}
  template <class U> explicit P(U* raw) : region(nullptr), offset((int64_t)raw) {}
  template <class U> explicit P(const P<U>& p) : region(p.region), offset(p.offset) {}
  template <class U, int N> explicit P(Local<U, N>& a) : region(&a.region), offset(0) {}

  Ref<T> operator*() const { return Ref<T>{region, offset}; }
  Ref<T> operator[](int64_t i) const { return *(*this + i); }
  P operator+(int64_t i) const { return P(region, offset + i * Size<T>::value); }
  P operator-(int64_t i) const { return P(region, offset - i * Size<T>::value); }
  P& operator+=(int64_t i) { return *this = *this + i; }
};

// void* takes any pointer without a cast.
template <> struct P<void> {
  Region* region;
  int64_t offset;
  template <class U> P(const P<U>& p) : region(p.region), offset(p.offset) {}
  template <class U, int N> P(Local<U, N>& a) : region(&a.region), offset(0) {}
  template <class U> P(U* raw) : region(nullptr), offset((int64_t)raw) {}
};

template <class T> P<T> Ref<T>::operator&() const { return P<T>(region, offset); }
template <class T> P<T> operator+(int64_t i, const P<T>& p) { return p + i; }

// A parameter `T&` of a helper function: an element of memory or a scalar variable.
template <class T> struct RefArg {
  Ref<T> target;
  RefArg(const Ref<T>& r) : target(r) {}
  RefArg(T& raw) : target{nullptr, (int64_t)&raw} {}
  operator T() const { return target; }
  T operator=(T value) const { return target.set(value); }
};

// A thread's own array: bytes that were never written must not be read.
template <class T, int N> struct Local {
  alignas(64) T data[N];
  unsigned char written[N * sizeof(T)];
  Region region;

  explicit Local(const char* name) {
    memset(written, 0, sizeof(written));
    region = Region{name, Region::kLocal, (unsigned char*)data, (int64_t)sizeof(data), 64, nullptr, written};
  }
  Local(const Local&) = delete;
  operator P<T>() { return P<T>(&region, 0); }
  Ref<T> operator[](int64_t i) { return P<T>(&region, 0)[i]; }
  Ref<T> operator*() { return *P<T>(&region, 0); }
  P<T> operator+(int64_t i) { return P<T>(&region, 0) + i; }
};

template <class T> P<T> shared_array(int index, const char* name, int64_t count, int align) {
  return P<T>(shared_region(index, name, count * (int64_t)sizeof(T), align), 0);
}
template <class T> P<T> dynamic_shared(int align) { return P<T>(dynamic_region(align), 0); }

template <class T, class U> P<T> recast(const U& p) { return P<T>(p); }
template <class T, class U, int N> P<T> recast(Local<U, N>& p) { return P<T>(p); }

// Operands of inline PTX.
template <class T> uint32_t reg32(T value) { return (uint32_t)value; }
inline uint32_t reg32(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }
inline float as_float(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
template <class T> uint64_t reg64(T value) { return (uint64_t)value; }
template <class T> uint64_t reg64(const P<T>& p) { return address_of(P<void>(p).region, p.offset); }

}  // namespace emu

#include "builtins.h"
