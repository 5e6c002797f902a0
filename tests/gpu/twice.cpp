// An op by a user's hand: x + x, on the CPU here and on CUDA in twice.cu.
#include <torch/library.h>
#include <ATen/ATen.h>

#ifdef WITH_CUDA
at::Tensor twice_on_cuda(const at::Tensor& x);
#endif

static at::Tensor twice_on_cpu(const at::Tensor& x) { return x + x; }

TORCH_LIBRARY(flopprof_gpu, library) { library.def("twice(Tensor x) -> Tensor"); }
TORCH_LIBRARY_IMPL(flopprof_gpu, CPU, library) { library.impl("twice", &twice_on_cpu); }
#ifdef WITH_CUDA
TORCH_LIBRARY_IMPL(flopprof_gpu, CUDA, library) { library.impl("twice", &twice_on_cuda); }
#endif
