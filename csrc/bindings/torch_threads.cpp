// SPDX-License-Identifier: MIT
// torch_parallel_for is part of torch's stable C interface since 2.10. It is looked up in the
// loaded library instead of linked, so that one build of this module serves every torch.
#include "bindings/torch_threads.h"

#include <dlfcn.h>

#include "common/parallel.h"

namespace fastdistill {

bool use_torch_threads() {
#if defined(__APPLE__)
  const char* library_name = "libtorch_cpu.dylib";
#else
  const char* library_name = "libtorch_cpu.so";
#endif
  void* library = dlopen(library_name, RTLD_NOLOAD | RTLD_NOW);
  void* symbol = library != nullptr ? dlsym(library, "torch_parallel_for") : nullptr;
  set_parallel_for(reinterpret_cast<ParallelFor>(symbol));
  return symbol != nullptr;
}

}  // namespace fastdistill
