// cpp_library_main libcpp_library.so [cuda]: loads the library and calls its ops by PyTorch's
// dispatcher, without Python.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>

#include <exception>
#include <iostream>
#include <string>

namespace {

int failures = 0;

void expect(bool equal, const std::string& what) {
  std::cout << what << (equal ? ": equal\n" : ": DIFFERENT\n");
  failures += !equal;
}

template <class Signature>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

void run(at::Device device) {
  const auto scale = find<at::Tensor(const at::Tensor&, double)>("cpp_library::scale");
  const auto dot_rows =
      find<at::Tensor(const at::Tensor&, const at::Tensor&)>("cpp_library::dot_rows");
  const at::Tensor x = at::arange(12, at::TensorOptions(device).dtype(at::kFloat)).view({3, 4});
  expect(at::equal(scale.call(x, 1.5), x * 1.5), "scale");
  expect(at::equal(scale.call(x.t(), 3.0), x.t() * 3.0), "scale of a transposed tensor");
  if (device.is_cpu())
    expect(at::equal(scale.call(x.to(at::kDouble), 1.5), x.to(at::kDouble) * 1.5),
           "scale of float64, by its reference");
  expect(at::allclose(dot_rows.call(x, x), (x * x).sum(1)), "dot_rows");
  try {
    dot_rows.call(x, x.slice(0, 0, 2));
    expect(false, "dot_rows of other sizes is refused");
  } catch (const std::exception& error) {
    expect(std::string(error.what()).find("cpp_library::dot_rows") != std::string::npos,
           "dot_rows of other sizes is refused");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: cpp_library_main libcpp_library.so [cuda]\n";
    return 2;
  }
  if (!dlopen(argv[1], RTLD_NOW | RTLD_LOCAL)) {
    std::cerr << dlerror() << "\n";
    return 1;
  }
  try {
    run(at::Device(argc > 2 ? argv[2] : "cpu"));
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return failures != 0;
}
