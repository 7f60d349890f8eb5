// One declared matrix product, done by cuBLASLt. What is the same for all calls is a rule; what is
// the same for calls with equal sizes, strides and alignments is prepared once and kept, so that
// such a call allocates nothing, takes no lock and asks for no algorithm.
//
// Tensors are row-major, and cuBLASLt thinks in columns: d = a b is handed over as dᵀ = bᵀ aᵀ, so
// that its A is b and its B is a. A transposed view costs nothing: it only changes which dimension
// is taken for the leading one.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>

#include "standalone/matmul_rule.h"

namespace opaq::standalone {

namespace lt {

// What a prepared product is for, compared byte by byte.
struct MatmulKey {
  int64_t m, n, k, batch;
  int64_t ld[5], offset[5];  // of A, B, C, D, Aux as cuBLASLt has them
  int64_t workspace;
  int32_t type[9];  // of A, B, C, D, Bias, Aux, and of scales: whether they are given
  int32_t alignment[6];
  int32_t transa, transb, device, epilogue;

  // Of all but the device. Equal products have equal ones in every process.
  uint64_t digest() const {
    MatmulKey key = *this;
    key.device = 0;
    const auto* bytes = reinterpret_cast<const unsigned char*>(&key);
    uint64_t value = 0xcbf29ce484222325;  // FNV-1a
    for (size_t i = 0; i < sizeof key; ++i) value = (value ^ bytes[i]) * 0x100000001b3;
    return value;
  }
};

struct Prepared {
  MatmulKey key;
  Prepared* next;
  MatmulDesc desc;
  MatrixLayout a, b, c, d;
  Algorithm algorithm;
  size_t workspace;
  int32_t scale_type;
};

// Of alpha and beta: what they may be given as.
union Number {
  float single;
  double twice;
  int32_t integer;
};
inline Number number(double value, int32_t type) {
  Number made{};
  if (type == kFloat64)
    made.twice = value;
  else if (type == kInt32)
    made.integer = static_cast<int32_t>(value);
  else
    made.single = static_cast<float>(value);
  return made;
}

}  // namespace lt

// Thread-safe. The library is opened by the first call.
class Matmul {
 public:
  // path: of the library, where the process has not loaded one; may be nullptr.
  explicit Matmul(const MatmulRule& rule, const char* path = nullptr) : rule_(rule), path_(path) {}
  Matmul(const Matmul&) = delete;
  ~Matmul() {
    for (std::atomic<lt::Prepared*>& bucket : kept_) {
      for (lt::Prepared* each = bucket.load(std::memory_order_acquire); each;)
        delete std::exchange(each, each->next);
    }
  }

  // operands: of each item of the argument list that is a tensor, nullptr for an absent one.
  // numbers: of each item that is a number. The device's context is current.
  void operator()(const DlTensor* const* operands, const double* numbers, void* stream) const {
    Call call = read(operands, numbers);
    if (call.key.m == 0 || call.key.n == 0 || call.key.batch == 0) return;
    lt::Prepared once;
    const lt::Prepared* prepared = find(call, once);
    lt::MatmulDesc desc = prepared->desc;
    set_pointers(desc, call.pointers);
    const lt::Number alpha = lt::number(call.alpha, prepared->scale_type),
                     beta = lt::number(call.beta, prepared->scale_type);
    const int32_t status =
        library().matmul(handle(call.key.device), &desc, &alpha, call.b, &prepared->a, call.a,
                         &prepared->b, &beta, call.c, &prepared->c, call.d, &prepared->d,
                         &prepared->algorithm, call.workspace, prepared->workspace, stream);
    if (status != 0)
      fail_with(ErrorKind::Driver, "cuBLASLt failed: %s%s", library().status_name(status),
                description(call).c_str());
  }

  // What the library names for such a call, which is not made. The device's context is current.
  MatmulRule::Known known(const DlTensor* const* operands, const double* numbers) const {
    const Call call = read(operands, numbers);
    lt::Prepared once;
    return {library().version(), call.key.digest(), find(call, once)->algorithm};
  }

 private:
  using R = MatmulRule;
  // The addresses that a descriptor holds, which may change from call to call.
  struct Pointers {
    const void* bias;
    const void* aux;
    const void* a_scale;
    const void* b_scale;
    const void* d_scale;
    const void* d_out_scale;
    const void* amax;
  };
  struct Call {
    lt::MatmulKey key;
    const void *a, *b, *c;
    void *d, *workspace;
    double alpha, beta;
    Pointers pointers;
  };

  static constexpr size_t kBuckets = 64, kMostKept = 4096, kMostDevices = 128;

  const DlTensor* operand(const DlTensor* const* operands, R::Role role) const {
    return rule_.item[role] < 0 ? nullptr : operands[rule_.item[role]];
  }
  const void* address(const DlTensor* const* operands, R::Role role) const {
    const DlTensor* tensor = operand(operands, role);
    return tensor ? tensor->data : nullptr;
  }
  lt::Matrix matrix(const DlTensor* const* operands, R::Role role) const {
    const DlTensor* tensor = operand(operands, role);
    return tensor
               ? lt::matrix_of(*tensor, rule_.rows[role], rule_.transposed[role], R::kNames[role])
               : lt::Matrix{};
  }
  Pointers pointers_of(const DlTensor* const* operands) const {
    return {address(operands, R::Bias),   address(operands, R::Aux),
            address(operands, R::AScale), address(operands, R::BScale),
            address(operands, R::DScale), address(operands, R::DOutScale),
            address(operands, R::Amax)};
  }

  // ---- reading a call ---------------------------------------------------------------------------

  Call read(const DlTensor* const* operands, const double* numbers) const {
    lt::Matrix a = matrix(operands, R::A), b = matrix(operands, R::B), c = matrix(operands, R::C),
               d = matrix(operands, R::D), aux = matrix(operands, R::Aux);
    const bool has_c = c.data != nullptr || c.rows != 0, has_aux = operand(operands, R::Aux);
    // With one matrix b for all of a, their rows are those of one a.
    if (b.batch == 1 && a.batch > 1) {
      lt::Matrix rows[] = {a, d, c, aux};
      bool folded = lt::fold_batch(rows[0]) && lt::fold_batch(rows[1]);
      if (has_c) folded = folded && c.batch == a.batch && lt::fold_batch(rows[2]);
      if (has_aux) folded = folded && lt::fold_batch(rows[3]);
      if (folded) {
        a = rows[0];
        d = rows[1];
        c = rows[2];
        aux = rows[3];
      }
    }
    check_sizes(a, b, c, d, aux, has_c, has_aux);

    Call call{};
    lt::MatmulKey& key = call.key;
    std::memset(&key, 0, sizeof key);
    key.m = d.rows;
    key.n = d.columns;
    key.k = a.columns;
    key.batch = d.batch;
    key.transa = place(b, "b", key.ld[0], /*prefer_transposed=*/true);
    key.transb = place(a, "a", key.ld[1], /*prefer_transposed=*/false);
    key.offset[0] = b.batch == 1 ? 0 : b.batch_stride;
    key.offset[1] = a.batch == 1 ? 0 : a.batch_stride;
    place_result(has_c ? c : d, "c", key.ld[2]);
    place_result(d, "d", key.ld[3]);
    key.offset[2] = has_c ? c.batch_stride : d.batch_stride;
    key.offset[3] = d.batch_stride;
    if (has_aux) {
      const bool mask = (rule_.epilogue & (lt::kRelu | lt::kDRelu)) != 0;  // bits
      if (mask) aux.columns = aux.row_stride;
      place_result(aux, "aux", key.ld[4]);
      key.offset[4] = aux.batch_stride * (mask ? 8 : 1);
      key.ld[4] *= mask ? 8 : 1;
      key.type[5] = mask ? 0 : aux.type + 1;
    }
    const DlTensor* bias = operand(operands, R::Bias);
    const DlTensor* workspace = operand(operands, R::Workspace);
    key.workspace = workspace ? workspace->shape[0] : 0;
    key.type[0] = b.type;
    key.type[1] = a.type;
    key.type[3] = d.type;
    key.type[4] = bias ? lt::type_of(bias->dtype) + 1 : 0;
    const bool narrow =
        d.type == lt::kFloat8E4M3 || d.type == lt::kFloat8E5M2 || d.type == lt::kFloat4E2M1;
    // Nothing of c is read, but its type has to be one that goes with a narrow d.
    key.type[2] = has_c ? c.type : narrow ? (bias ? key.type[4] - 1 : lt::kBFloat16) : d.type;
    call.pointers = pointers_of(operands);
    key.type[6] = (call.pointers.a_scale ? 1 : 0) | (call.pointers.b_scale ? 2 : 0) |
                  (call.pointers.d_scale ? 4 : 0) | (call.pointers.d_out_scale ? 8 : 0) |
                  (call.pointers.amax ? 16 : 0);
    key.epilogue = epilogue(bias != nullptr, has_aux);
    call.a = a.data;
    call.b = b.data;
    call.d = d.data;
    call.c = has_c ? c.data : narrow ? nullptr : d.data;
    call.workspace = workspace ? workspace->data : nullptr;
    call.alpha = rule_.item[R::Alpha] < 0 ? 1 : numbers[rule_.item[R::Alpha]];
    call.beta = rule_.item[R::Beta] < 0 ? (has_c ? 1 : 0) : numbers[rule_.item[R::Beta]];
    const void* aligned[] = {
        b.data, a.data, has_c ? c.data : d.data, d.data, call.pointers.bias, call.pointers.aux};
    for (size_t i = 0; i < 6; ++i) key.alignment[i] = lt::alignment_of(aligned[i]);
    key.device = operand(operands, R::D)->device.index;
    return call;
  }

  int32_t epilogue(bool has_bias, bool has_aux) const {
    int32_t bits = rule_.epilogue == lt::kNone ? 0 : rule_.epilogue;
    const bool backward = (bits & (lt::kDRelu | lt::kDGelu)) != 0;
    const bool sums = (bits & (lt::kBiasGradientA | lt::kBiasGradientB)) != 0;
    if (has_bias && !sums) bits |= backward ? lt::kBiasGradient : lt::kBias;
    if (has_aux) bits |= lt::kAux;
    return bits == 0 ? lt::kNone : bits;
  }

  static void check_sizes(const lt::Matrix& a, const lt::Matrix& b, const lt::Matrix& c,
                          const lt::Matrix& d, const lt::Matrix& aux, bool has_c, bool has_aux) {
    if (a.columns != b.rows)
      fail_with(ErrorKind::Launch, "`a` has %lld columns, and `b` %lld rows; they must be equal",
                static_cast<long long>(a.columns), static_cast<long long>(b.rows));
    const auto fits = [&](const lt::Matrix& each, const char* role) {
      if (each.rows == a.rows && each.columns == b.columns) return;
      fail_with(ErrorKind::Launch, "`%s` is %lld x %lld; the product of `a` and `b` is %lld x %lld",
                role, static_cast<long long>(each.rows), static_cast<long long>(each.columns),
                static_cast<long long>(a.rows), static_cast<long long>(b.columns));
    };
    fits(d, "d");
    if (has_c) fits(c, "c");
    if (has_aux && aux.rows != d.rows)
      fail_with(ErrorKind::Launch, "`aux` has %lld rows; the product has %lld",
                static_cast<long long>(aux.rows), static_cast<long long>(d.rows));
    for (const lt::Matrix* each : {&a, &b, &d}) {
      if (each->batch != 1 && each->batch != d.batch)
        fail_with(
            ErrorKind::Launch,
            "`a` holds %lld matrices, `b` %lld and `d` %lld; expected as many in each, or one",
            static_cast<long long>(a.batch), static_cast<long long>(b.batch),
            static_cast<long long>(d.batch));
    }
    if (has_c && c.batch != d.batch)
      fail_with(ErrorKind::Launch, "`c` holds %lld matrices and `d` %lld; expected as many",
                static_cast<long long>(c.batch), static_cast<long long>(d.batch));
  }

  // The leading dimension of a factor, and whether cuBLASLt has to transpose it. Its columns are
  // the rows here. Where both are possible, fp8 needs the one that is preferred.
  static int32_t place(const lt::Matrix& m, const char* role, int64_t& ld, bool prefer_transposed) {
    const bool as_is = m.column_stride == 1 || m.columns == 1,
               transposed = m.row_stride == 1 || m.rows == 1;
    const bool enough =
        m.columns == 1 || m.rows == 1 ||
        (m.column_stride == 1 ? m.row_stride >= m.columns : m.column_stride >= m.rows);
    if ((!as_is && !transposed) || !enough)
      fail_with(ErrorKind::Launch,
                "`%s` has strides (%lld, %lld) in its last two dimensions; cuBLASLt needs one of "
                "them to be 1 and no overlap: make it contiguous",
                role, static_cast<long long>(m.row_stride),
                static_cast<long long>(m.column_stride));
    const bool swap = transposed && (!as_is || prefer_transposed);
    ld = swap ? (m.columns == 1 ? m.rows : std::max(m.column_stride, m.rows))
              : (m.rows == 1 ? m.columns : std::max(m.row_stride, m.columns));
    return swap ? 1 : 0;
  }

  static void place_result(const lt::Matrix& m, const char* role, int64_t& ld) {
    if (m.column_stride != 1 && m.columns != 1)
      fail_with(ErrorKind::Launch,
                "`%s` has the stride %lld in its last dimension; cuBLASLt writes rows: expected 1",
                role, static_cast<long long>(m.column_stride));
    ld = m.rows == 1 ? m.columns : std::max(m.row_stride, m.columns);
  }

  // ---- prepared products ------------------------------------------------------------------------

  static size_t bucket_of(const lt::MatmulKey& key) {
    return (static_cast<size_t>(key.m) * 31 + static_cast<size_t>(key.alignment[1]) * 7 +
            static_cast<size_t>(key.n + key.k)) %
           kBuckets;
  }

  const lt::Prepared* find(const Call& call, lt::Prepared& once) const {
    std::atomic<lt::Prepared*>& bucket = kept_[bucket_of(call.key)];
    lt::Prepared* const first = bucket.load(std::memory_order_acquire);
    for (const lt::Prepared* each = first; each; each = each->next) {
      if (std::memcmp(&each->key, &call.key, sizeof call.key) == 0) return each;
    }
    prepare(call, once);
    if (count_.fetch_add(1, std::memory_order_relaxed) >= kMostKept) return &once;
    auto* made = new lt::Prepared(once);  // lives as long as this: a call may be using it
    made->next = first;
    while (!bucket.compare_exchange_weak(made->next, made, std::memory_order_acq_rel)) {
    }
    return made;
  }

  void check(int32_t status, const char* what, const Call& call) const {
    if (status != 0)
      fail_with(ErrorKind::Launch, "cuBLASLt refuses %s: %s%s", what, library().status_name(status),
                description(call).c_str());
  }

  // Of alpha, beta and the sum.
  static int32_t scale_type(const lt::MatmulKey& key) {
    return key.type[1] == lt::kFloat64                             ? lt::kFloat64
           : key.type[1] == lt::kInt8 && key.type[3] == lt::kInt32 ? lt::kInt32
                                                                   : lt::kFloat32;
  }

  int32_t compute(const lt::MatmulKey& key) const {
    if (rule_.compute) return rule_.compute;
    return key.type[1] == lt::kFloat64 ? lt::kComputeFloat64
           : key.type[1] == lt::kInt8  ? lt::kComputeInt32
                                       : lt::kComputeFloat32;
  }

  void prepare(const Call& call, lt::Prepared& made) const {
    const lt::Library& lt_ = library();
    const lt::MatmulKey& key = call.key;
    made.key = key;
    made.scale_type = scale_type(key);
    check(lt_.init_desc(&made.desc, sizeof made.desc, compute(key), made.scale_type), "the dtypes",
          call);
    const auto set = [&](int32_t attribute, const auto& value, const char* what) {
      check(lt_.set_desc(&made.desc, attribute, &value, sizeof value), what, call);
    };
    set(lt::kTransA, key.transa, "a transpose");
    set(lt::kTransB, key.transb, "a transpose");
    set(lt::kEpilogue, key.epilogue, "the epilogue");
    if (key.type[4]) set(lt::kBiasType, key.type[4] - 1, "the dtype of bias");
    if (call.pointers.aux) {
      set(lt::kAuxLd, key.ld[4], "the stride of aux");
      if (key.batch > 1) set(lt::kAuxBatchStride, key.offset[4], "the stride of aux");
      if (key.type[5] && key.type[5] - 1 != key.type[3])
        set(lt::kAuxType, key.type[5] - 1, "the dtype of aux");
    }
    if (rule_.fast_accum) set(lt::kFastAccum, int8_t{1}, "fast accumulation");
    const auto mode = [&](R::Role role, int32_t attribute, const void* given) {
      if (given && rule_.scale_mode[role]) set(attribute, rule_.scale_mode[role], "a scale mode");
    };
    mode(R::BScale, lt::kAScaleMode, call.pointers.b_scale);  // its A is b
    mode(R::AScale, lt::kBScaleMode, call.pointers.a_scale);
    mode(R::DOutScale, lt::kDOutScaleMode, call.pointers.d_out_scale);
    set_pointers(made.desc, call.pointers);  // the heuristic looks at their alignment

    const auto layout = [&](lt::MatrixLayout& to, int index, int64_t rows, int64_t columns) {
      check(lt_.init_layout(&to, sizeof to, key.type[index], static_cast<uint64_t>(rows),
                            static_cast<uint64_t>(columns), key.ld[index]),
            "a layout", call);
      if (key.batch == 1) return;
      const auto count = static_cast<int32_t>(key.batch);
      check(lt_.set_layout(&to, lt::kBatchCount, &count, sizeof count), "a batch", call);
      check(lt_.set_layout(&to, lt::kBatchOffset, &key.offset[index], sizeof(int64_t)), "a batch",
            call);
    };
    layout(made.a, 0, key.transa ? key.k : key.n, key.transa ? key.n : key.k);
    layout(made.b, 1, key.transb ? key.m : key.k, key.transb ? key.k : key.m);
    layout(made.c, 2, key.n, key.m);
    layout(made.d, 3, key.n, key.m);
    choose(call, made);
  }

  void choose(const Call& call, lt::Prepared& made) const {
    const lt::Library& lt_ = library();
    const MatmulRule::Known& known = rule_.known;
    const bool this_version = known.version == lt_.version();
    if (this_version && known.product == call.key.digest()) {
      lt::Heuristic found{};
      if (lt_.check(handle(call.key.device), &made.desc, &made.a, &made.b, &made.c, &made.d,
                    &known.algorithm, &found) == 0 &&
          found.state == 0 && found.workspace <= static_cast<size_t>(call.key.workspace)) {
        made.algorithm = known.algorithm;
        made.workspace = found.workspace;
        return;
      }
    }
    lt::MatmulPreference preference;
    check(lt_.init_preference(&preference, sizeof preference), "a preference", call);
    const auto prefer = [&](int32_t attribute, const auto& value) {
      check(lt_.set_preference(&preference, attribute, &value, sizeof value), "a preference", call);
    };
    prefer(lt::kMaxWorkspace, static_cast<uint64_t>(call.key.workspace));
    constexpr int32_t kAlignments[] = {lt::kMinAlignmentA, lt::kMinAlignmentB, lt::kMinAlignmentC,
                                       lt::kMinAlignmentD};
    for (int i = 0; i < 4; ++i)
      prefer(kAlignments[i], static_cast<uint32_t>(call.key.alignment[i]));
    constexpr int kMost = 32;
    lt::Heuristic named[kMost] = {};
    const int wanted =
        known.version != 0 && !this_version ? 1 : std::min(rule_.algorithm + 1, kMost);
    int found = 0;
    const int32_t status = lt_.heuristic(handle(call.key.device), &made.desc, &made.a, &made.b,
                                         &made.c, &made.d, &preference, wanted, named, &found);
    if (status != 0 || found == 0 || named[0].state != 0)
      fail_with(ErrorKind::Launch, "cuBLASLt has no algorithm for it (%s)%s",
                lt_.status_name(status), description(call).c_str());
    const lt::Heuristic& best = named[std::min(wanted, found) - 1];
    made.algorithm = best.algorithm;
    made.workspace = best.workspace;
  }

  void set_pointers(lt::MatmulDesc& desc, const Pointers& p) const {
    const auto set = [&](int32_t attribute, const void* pointer) {
      if (pointer) library().set_desc(&desc, attribute, &pointer, sizeof pointer);
    };
    set(lt::kBiasPointer, p.bias);
    set(lt::kAuxPointer, p.aux);
    set(lt::kAScalePointer, p.b_scale);  // its A is b
    set(lt::kBScalePointer, p.a_scale);
    set(lt::kDScalePointer, p.d_scale);
    set(lt::kDOutScalePointer, p.d_out_scale);
    set(lt::kAmaxPointer, p.amax);
  }

  [[gnu::cold, gnu::noinline]] static std::string description(const Call& call) {
    const lt::MatmulKey& k = call.key;
    return format_text(
        "; the product is %lld x %lld x %lld, batch %lld, of %s and %s to %s, %s x %s, alignments "
        "%d, %d, %d bytes, epilogue %d, %lld bytes of workspace. It supports float16, bfloat16, "
        "float32, float64 and int8 in any layout; float8 where the last dimension of a and the "
        "one before the last of b are contiguous, with sizes that are multiples of 16, on devices "
        "from 8.9 on",
        static_cast<long long>(k.m), static_cast<long long>(k.n), static_cast<long long>(k.k),
        static_cast<long long>(k.batch), lt::type_name(k.type[1]), lt::type_name(k.type[0]),
        lt::type_name(k.type[3]), k.transb ? "transposed" : "row-major",
        k.transa ? "transposed" : "row-major", k.alignment[1], k.alignment[0], k.alignment[3],
        k.epilogue, static_cast<long long>(k.workspace));
  }

  // ---- the library ------------------------------------------------------------------------------

  const lt::Library& library() const {
    static const lt::Library opened = lt::open_library(path_);
    return opened;
  }

  // One for each device, without a stream; never destroyed.
  lt::Handle handle(int32_t device) const {
    static std::atomic<lt::Handle> handles[kMostDevices];
    std::atomic<lt::Handle>& known = handles[device];
    if (lt::Handle handle = known.load(std::memory_order_acquire)) return handle;
    static std::mutex making;
    const std::lock_guard lock(making);
    lt::Handle made = known.load(std::memory_order_acquire);
    if (made) return made;
    if (const int32_t status = library().create(&made); status != 0)
      fail_with(ErrorKind::Missing, "cuBLASLt cannot be used on device %d: %s", device,
                library().status_name(status));
    known.store(made, std::memory_order_release);
    return made;
  }

  const MatmulRule rule_;
  const char* const path_;
  mutable std::atomic<lt::Prepared*> kept_[kBuckets] = {};
  mutable std::atomic<size_t> count_{0};
};

}  // namespace opaq::standalone
