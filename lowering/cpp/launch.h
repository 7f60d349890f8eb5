// Opaque ops in a generated C++ wrapper: views of tensors, values of parameters, errors. C++17,
// after the runtime's expression prelude and PyTorch's AOTInductor headers; the emitter puts it,
// its include lines apart, into an anonymous namespace of each wrapper.
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

// As sprintf. Messages are put together out of line: inlined sums of strings would be most of what
// the compiler spends on a wrapper.
[[gnu::cold, gnu::noinline, gnu::format(printf, 1, 0)]] inline std::string opaq_format(
    const char* format, va_list arguments) {
  char* text = nullptr;
  const bool made = vasprintf(&text, format, arguments) >= 0;
  std::string message(made ? text : format);
  if (made) std::free(text);
  return message;
}

[[gnu::cold, gnu::noinline, gnu::format(printf, 1, 2)]] inline std::string opaq_text(
    const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string text = opaq_format(format, arguments);
  va_end(arguments);
  return text;
}

[[noreturn, gnu::cold, gnu::noinline, gnu::format(printf, 1, 2)]] inline void opaq_raise(
    const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const std::runtime_error error(opaq_format(format, arguments));
  va_end(arguments);
  throw error;
}

// Rethrows what an expression raised, with the op and the expression's place in front.
[[noreturn, gnu::cold, gnu::noinline]] inline void opaq_rethrow(const char* op, const char* place,
                                                                const std::exception& error) {
  const char* message = error.what();
  if (std::strncmp(message, op, std::strlen(op)) == 0) throw;
  if (std::strncmp(message, "opaq: ", 6) == 0) message += 6;
  if (dynamic_cast<const std::bad_optional_access*>(&error))
    message = "an optional argument that is None is read";
  opaq_raise("%s: %s%s%s", op, place, *place ? ": " : "", message);
}

// ---- tensors ------------------------------------------------------------------------------------

inline opaq_tensor opaq_address_of(AtenTensorHandle handle) {
  opaq_tensor view{};
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle, &view.data));
  return view;
}

inline opaq_tensor opaq_view(AtenTensorHandle handle, opaq_dtype dtype, int64_t itemsize) {
  opaq_tensor view = opaq_address_of(handle);
  int64_t* sizes;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &view.dim));
  view.sizes = sizes;
  view.dtype = dtype;
  view.itemsize = itemsize;
  return view;
}

inline opaq_tensor opaq_strided_view(AtenTensorHandle handle, opaq_dtype dtype, int64_t itemsize) {
  opaq_tensor view = opaq_view(handle, dtype, itemsize);
  int64_t* strides;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &strides));
  view.strides = strides;
  return view;
}

inline bool opaq_empty(AtenTensorHandle handle) {
  int64_t count = 0;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(handle, &count));
  return count == 0;
}

// A row-major copy of a tensor, where it is none itself; made on the current stream, and freed with
// the block.
struct opaq_row_major {
  torch::aot_inductor::RAIIAtenTensorHandle copy;
  opaq_tensor view;
  opaq_row_major(AtenTensorHandle handle, const opaq_tensor& tensor) : view(tensor) {
    if (tensor.is_contiguous()) return;
    std::vector<int64_t> strides(static_cast<size_t>(tensor.dim), 1);
    for (int64_t i = tensor.dim - 1; i > 0; --i) strides[i - 1] = strides[i] * tensor.sizes[i];
    int32_t device_type = 0, device_index = 0;
    AtenTensorHandle made = nullptr;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(handle, &device_type));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(handle, &device_index));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        tensor.dim, tensor.sizes, strides.data(), tensor.dtype, device_type, device_index, &made));
    copy = torch::aot_inductor::RAIIAtenTensorHandle(made);
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(made, handle, 0));
    view = opaq_strided_view(made, tensor.dtype, tensor.itemsize);
  }
};

inline opaq_ints opaq_list(const std::initializer_list<int64_t>& values) {
  return {values.begin(), static_cast<int64_t>(values.size())};
}

// A requirement that cannot be evaluated (a dimension out of range) does not hold.
template <class F>
inline bool opaq_holds(F&& requirement) {
  try {
    return requirement();
  } catch (const std::exception&) {
    return false;
  }
}

// ---- parameters: the low bytes of 64 bits -------------------------------------------------------

inline uint64_t opaq_as_pointer(const opaq_tensor& tensor) {
  return reinterpret_cast<uint64_t>(tensor.data);
}
inline uint64_t opaq_as_pointer(const std::optional<opaq_tensor>& tensor) {
  return tensor ? opaq_as_pointer(*tensor) : 0;
}

[[noreturn]] inline void opaq_misfit(const char* argument, const char* value, const char* parameter,
                                     const char* wider) {
  opaq_raise("%s is %s, which does not fit the kernel's parameter %s; declare the parameter as %s",
             argument, value, parameter, wider);
}

inline uint64_t opaq_as_integer(int64_t value, int64_t low, int64_t high, const char* argument,
                                const char* parameter) {
  if (value < low || value > high) {
    const char* wider = value < 0 && low == 0 ? "a signed type such as int64_t" : "int64_t";
    opaq_misfit(argument, opaq_text("%" PRId64, value).c_str(), parameter, wider);
  }
  return static_cast<uint64_t>(value);
}

inline uint64_t opaq_as_double(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

[[noreturn]] inline void opaq_overflow(const char* argument, double value, const char* parameter) {
  opaq_misfit(argument, opaq_text("%g", value).c_str(), parameter,
              "float or double, whose range is wider");
}

inline uint64_t opaq_as_float(double value, const char* argument, const char* parameter) {
  const float narrow = static_cast<float>(value);
  if (std::isinf(narrow) && !std::isinf(value)) opaq_overflow(argument, value, parameter);
  uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof bits);
  return bits;
}

// The nearest value, ties to even, with `precision` bits (the implicit one counted) and 16 in all.
inline uint64_t opaq_small_float(double value, int precision, int min_exponent, int max_exponent,
                                 const char* argument, const char* parameter) {
  const uint32_t sign = std::signbit(value) ? 0x8000 : 0;
  const int fraction = precision - 1;
  const uint32_t infinity = 0x7fff >> fraction << fraction;
  if (std::isnan(value)) return sign | infinity | 1u << (fraction - 1);
  if (value == 0) return sign;
  if (std::isinf(value)) return sign | infinity;
  const int exponent = std::max(std::ilogb(value), min_exponent);
  const auto units =
      static_cast<uint32_t>(std::nearbyint(std::ldexp(std::fabs(value), fraction - exponent)));
  const uint32_t bits = (static_cast<uint32_t>(exponent - min_exponent) << fraction) + units;
  if (exponent > max_exponent || bits >= infinity) opaq_overflow(argument, value, parameter);
  return sign | bits;
}
inline uint64_t opaq_as_half(double value, const char* argument, const char* parameter) {
  return opaq_small_float(value, 11, -14, 15, argument, parameter);
}
inline uint64_t opaq_as_bfloat16(double value, const char* argument, const char* parameter) {
  return opaq_small_float(value, 8, -126, 127, argument, parameter);
}
