// Chooses for a node of a compiled graph, given what the compiler knows of the call's conditions.
#include "choose/choose.h"

#include <algorithm>
#include <string>

#include "args.h"
#include "functions.h"

namespace opaq::python {
namespace {

Truth to_truth(PyObject* answer) {
  if (answer == Py_True) return Truth::Yes;
  if (answer == Py_False) return Truth::No;
  if (answer == Py_None) return Truth::AtLaunch;
  fail(ErrorKind::Launch, "an answer is True, False or None (known at the launch only)");
}

std::vector<Truth> to_truths(PyObject* answers, const char* what) {
  std::vector<Truth> truths;
  for (const Ref& answer : to_items(answers, what)) truths.push_back(to_truth(answer.get()));
  return truths;
}

}  // namespace

MeasuredSizes to_measured(const Op& op, PyObject* value) {
  const std::vector<Ref> items = to_items(value, "measured");
  MeasuredSizes measured;
  measured.otherwise = to_string(items.at(2).get(), "implementation");
  const std::vector<Ref> ranges = to_items(items.at(1).get(), "ranges");
  if (ranges.empty()) return measured;
  const std::vector<Ref> size = to_items(items.at(0).get(), "size");
  const std::string argument = to_string(size.at(0).get(), "argument");
  const std::vector<ArgSpec>& args = op.spec().schema.args;
  const auto found = std::ranges::find(args, argument, &ArgSpec::name);
  if (found == args.end())
    fail(ErrorKind::Launch, op.name() + " has no argument `" + argument + "`");
  for (const Ref& range : ranges) {
    const std::vector<Ref> parts = to_items(range.get(), "range");
    measured.ranges.push_back({{static_cast<uint32_t>(found - args.begin()),
                                static_cast<int32_t>(to_int(size.at(1).get(), "dim")),
                                to_int(parts.at(0).get(), "limit")},
                               to_string(parts.at(1).get(), "implementation")});
  }
  return measured;
}

PyObject* choose(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "choose");
    const Op& op = op_named(to_string(items.at(0).get(), "op"));
    const DeviceType device = parse_device(to_string(items.at(1).get(), "device_type")).type;
    KnownConditions known;
    PyObject *name = nullptr, *answers = nullptr;
    for (Py_ssize_t at = 0; PyDict_Next(items.at(2).get(), &at, &name, &answers);)
      known.requirements[to_string(name, "implementation")] = to_truths(answers, "requirements");
    known.row_major = to_truths(items.at(3).get(), "row_major");
    known.packaged = items.size() > 4 && to_bool(items[4].get());
    if (items.size() > 5) known.measured = to_measured(op, items[5].get());

    const std::vector<Symbol> symbols = op.spec().all_symbols();
    auto choice = std::make_unique<const NodeChoice>(chooser(op).choose_for_node(known, device));
    List launches;
    for (const NodeLaunch& launch : choice->launches) {
      launches.add(Dict()
                       .set("implementation", launch.implementation->name)
                       .set("conditions", launch.conditions(symbols))
                       .set("copied", names_of(launch.copied, symbols))
                       .take());
    }
    Dict d;
    d.put("launches", launches.take())
        .set("always_fits", choice->always_fits())
        .set("placed_row_major", names_of(choice->placed_row_major, symbols))
        .set("placed_copies", names_of(choice->placed_copies, symbols))
        .set("skipped", choice->skipped);
    return d.put("handle", keep(std::move(choice), kNodeChoice)).take().release();
  });
}

}  // namespace opaq::python
