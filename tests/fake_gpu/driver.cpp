// The part of CUDA's driver and runtime that TVM's runtime for CUDA calls, without a GPU.
//
// Device memory is the host's. A launch goes to a function that the test sets; while a stream is
// captured the launches are collected, and a graph's launch hands them over again. Modules must be
// fat binaries, and kernels must be named in them.
//
// Declarations are written out, as CUDA's headers need not be here; the version script beside this
// file gives the symbols the version that TVM's library asks for.
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <string>
#include <vector>

namespace {

struct LaunchConfig {  // CUlaunchConfig
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  void* attributes;
  unsigned attribute_count;
};

// Runs a kernel, or with `capture` keeps its arguments and returns their number (or -1).
using Launcher = int (*)(const char* kernel, const unsigned* extents, void** arguments, int capture);
using Replayer = int (*)(int number);

constexpr int kMajor = 75, kMinor = 76;  // cudaDevAttrComputeCapabilityMajor, ...Minor
constexpr int kInvalid = 200, kNotFound = 500, kFailed = 719;
int arch = 0;
Launcher launcher = nullptr;
Replayer replayer = nullptr;
std::vector<int>* capturing = nullptr;
std::map<uintptr_t, size_t> allocations;

struct Kernel {
  std::string name;
};

double milliseconds() {
  auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(now).count();
}

}  // namespace

extern "C" {

void cudaFakeSetUp(int sm, Launcher launch, Replayer replay) {
  arch = sm, launcher = launch, replayer = replay;
}

// Bytes from an address to the end of its allocation; 0 where it is in none.
int64_t cudaFakeBytes(uintptr_t address) {
  auto next = allocations.upper_bound(address);
  if (next == allocations.begin()) return 0;
  auto [start, size] = *std::prev(next);
  return address < start + size ? static_cast<int64_t>(start + size - address) : 0;
}

int cuModuleLoadData(std::string** module, const char* data) {
  uint32_t magic;
  uint64_t size;
  std::memcpy(&magic, data, 4);
  if (magic != 0xBA55ED50u) return kInvalid;
  std::memcpy(&size, data + 8, 8);
  *module = new std::string(data, 16 + size);
  return 0;
}
int cuModuleGetFunction(Kernel** kernel, std::string* module, const char* name) {
  if (module->find(name) == std::string::npos) return kNotFound;
  *kernel = new Kernel{name};
  return 0;
}
int cuModuleUnload(std::string* module) { return delete module, 0; }
int cuLaunchKernelEx(const LaunchConfig* c, Kernel* kernel, void** arguments, void**) {
  unsigned extents[7] = {c->grid[0],  c->grid[1],  c->grid[2],     c->block[0],
                         c->block[1], c->block[2], c->shared_bytes};
  int result = launcher(kernel->name.c_str(), extents, arguments, capturing != nullptr);
  if (result < 0) return kFailed;
  if (capturing) capturing->push_back(result);
  return 0;
}
int cuFuncSetAttribute(Kernel*, int, int) { return 0; }
int cuTensorMapEncodeTiled() { return kFailed; }
int cuDeviceGetName(char* name, int size, int) { return std::strncpy(name, "Emulator", size), 0; }
int cuGetErrorName(int, const char** text) { return *text = "the emulator refuses", 0; }
int cuGetErrorString(int, const char** text) { return *text = "the emulator refuses", 0; }

int cudaMalloc(void** p, size_t size) {
  *p = std::aligned_alloc(256, (size + 256) / 256 * 256);
  std::memset(*p, 0xA5, size);
  allocations[reinterpret_cast<uintptr_t>(*p)] = size;
  return 0;
}
int cudaFree(void* p) {
  allocations.erase(reinterpret_cast<uintptr_t>(p));
  return std::free(p), 0;
}
int cudaMallocHost(void** p, size_t size) { return *p = std::malloc(size), 0; }
int cudaFreeHost(void* p) { return std::free(p), 0; }
int cudaMemcpyAsync(void* to, const void* from, size_t size, int, void*) {
  return std::memmove(to, from, size), 0;
}
int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, void*) {
  return std::memmove(to, from, size), 0;
}
int cudaMemGetInfo(size_t* free, size_t* total) { return *free = *total = size_t{1} << 33, 0; }

int cudaGetDevice(int* device) { return *device = 0, 0; }
int cudaSetDevice(int) { return 0; }
int cudaGetDeviceCount(int* count) { return *count = 1, 0; }
int cudaGetDeviceProperties(void*, int) { return kFailed; }
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == kMajor ? arch / 10 : attribute == kMinor ? arch % 10 : 1024;
  return 0;
}
int cudaGetLastError() { return 0; }
int cudaPeekAtLastError() { return 0; }
const char* cudaGetErrorName(int) { return "the emulator refuses"; }
const char* cudaGetErrorString(int) { return "the emulator refuses"; }

int cudaEventCreate(double** event) { return *event = new double(0), 0; }
int cudaEventDestroy(double* event) { return delete event, 0; }
int cudaEventRecord(double* event, void*) { return *event = milliseconds(), 0; }
int cudaEventSynchronize(double*) { return 0; }
int cudaEventElapsedTime(float* time, double* from, double* to) { return *time = *to - *from, 0; }

int cudaStreamCreate(void** stream) { return *stream = nullptr, 0; }
int cudaStreamCreateWithFlags(void** stream, unsigned) { return *stream = nullptr, 0; }
int cudaStreamDestroy(void*) { return 0; }
int cudaStreamSynchronize(void*) { return 0; }
int cudaStreamWaitEvent(void*, double*, unsigned) { return 0; }
int cudaStreamBeginCapture(void*, int) { return capturing = new std::vector<int>, 0; }
int cudaStreamEndCapture(void*, std::vector<int>** graph) {
  *graph = capturing;
  return capturing = nullptr, 0;
}
int cudaGraphInstantiate(void** executable, std::vector<int>* graph, unsigned long long) {
  return *executable = new std::vector<int>(*graph), 0;
}
int cudaGraphLaunch(std::vector<int>* executable, void*) {
  for (int number : *executable) {
    if (replayer(number) < 0) return kFailed;
  }
  return 0;
}
int cudaGraphDestroy(std::vector<int>* graph) { return delete graph, 0; }
int cudaGraphExecDestroy(std::vector<int>* executable) { return delete executable, 0; }

}  // extern "C"
