// Runs a library that tvm-q4 compiled, without Python: prints the best class of every image.
//
//   run_library LIBRARY.so INPUT.f32 N C H W
//
// INPUT.f32 holds N * C * H * W little-endian float32 values in that order, already normalised;
// N must be the batch for which the library was compiled.

#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using tvm::ffi::Function;
using tvm::ffi::Module;
using tvm::ffi::Tensor;

constexpr DLDevice kCPU{kDLCPU, 0};
constexpr DLDataType kFloat32{kDLFloat, 32, 1};
// TVM's AllocatorType::kPooled: keeps the activations' arena from one run to the next.
constexpr int kPooledAllocator = 2;

// Memory of our own tensors; kernels may assume that it is aligned to 64 bytes.
struct AlignedAllocator {
  static constexpr std::align_val_t kAlignment{64};
  void AllocData(DLTensor* tensor) {
    size_t bytes = tvm::ffi::GetDataSize(*tensor);
    tensor->data = ::operator new(bytes, kAlignment);
  }
  void FreeData(DLTensor* tensor) { ::operator delete(tensor->data, kAlignment); }
};

Function GetFunction(const Module& module, const std::string& name) {
  tvm::ffi::Optional<Function> function = module->GetFunction(name, /*query_imports=*/true);
  if (!function.has_value()) {
    throw std::runtime_error("the library has no function '" + name + "'");
  }
  return function.value();
}

// The virtual machine of a library, ready to run. It keeps the library loaded.
Module LoadVirtualMachine(const std::string& path) {
  // A name without a folder would be looked for among the system's libraries.
  Module library = Module::LoadFromFile(std::filesystem::absolute(path).string());
  Module vm = GetFunction(library, "vm_load_executable")().cast<Module>();
  GetFunction(vm, "vm_initialization")(static_cast<int>(kCPU.device_type), kCPU.device_id,
                                       kPooledAllocator);
  return vm;
}

std::vector<int64_t> ParseShape(char** argv) {
  std::vector<int64_t> shape;
  for (int i = 0; i < 4; ++i) {
    int64_t extent = std::atoll(argv[i]);
    if (extent < 1) {
      throw std::runtime_error(std::string("'") + argv[i] + "' is no extent of [N, C, H, W]");
    }
    shape.push_back(extent);
  }
  return shape;
}

Tensor ReadInput(const std::string& path, const std::vector<int64_t>& shape) {
  Tensor tensor = Tensor::FromNDAlloc(AlignedAllocator(), tvm::ffi::Shape(shape), kFloat32, kCPU);
  const size_t bytes = static_cast<size_t>(tensor.numel()) * sizeof(float);
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error("cannot read '" + path + "'");
  if (static_cast<size_t>(file.tellg()) != bytes) {
    throw std::runtime_error("'" + path + "' has " + std::to_string(file.tellg()) +
                             " bytes, the shape needs " + std::to_string(bytes));
  }
  file.seekg(0);
  file.read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(bytes));
  return tensor;
}

// Index of the largest of `classes` logits for each image; the first of equal ones.
std::vector<int64_t> BestClasses(const Tensor& logits) {
  const DLDataType type = logits.dtype();
  if (logits.ndim() != 2 || type.code != kDLFloat || type.bits != 32) {
    throw std::runtime_error("the result is not float32 [N, classes]; integer output needs scales");
  }
  const int64_t count = logits.size(0), classes = logits.size(1);
  const float* values = static_cast<const float*>(logits.data_ptr());
  std::vector<int64_t> best;
  for (int64_t n = 0; n < count; ++n) {
    const float* row = values + n * classes;
    best.push_back(std::max_element(row, row + classes) - row);
  }
  return best;
}

int Run(int argc, char** argv) {
  if (argc != 7) {
    std::cerr << "usage: run_library LIBRARY.so INPUT.f32 N C H W\n";
    return 2;
  }
  Tensor input = ReadInput(argv[2], ParseShape(argv + 3));
  Module vm = LoadVirtualMachine(argv[1]);
  Tensor logits = GetFunction(vm, "main")(input).cast<Tensor>();
  for (int64_t index : BestClasses(logits)) std::cout << index << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  }
}
