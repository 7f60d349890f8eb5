// Declarations of Python's (dicts, lists, texts, numbers, flags) as trees of fields.
#pragma once

#include <opaq/declare.h>

#include <deque>
#include <string>
#include <vector>

#include "bind.h"

namespace opaq::python {

class FieldTree {
 public:
  // key: must live as long as the tree. Throws PythonError for a value of another type.
  explicit FieldTree(PyObject* value, const char* key = "") : root_(field(value, key)) {}
  FieldTree(const FieldTree&) = delete;
  const opaq_field& root() const { return root_; }

 private:
  const std::string& keep(std::string text) { return texts_.emplace_back(std::move(text)); }

  opaq_field field(PyObject* value, const char* key) {
    if (PyUnicode_Check(value) || PyBytes_Check(value)) return leaf(key, to_string(value, key));
    if (PyBool_Check(value)) return leaf(key, value == Py_True ? "1" : "");
    if (PyLong_Check(value)) return leaf(key, std::to_string(to_int(value, key)));
    std::vector<opaq_field>& fields = lists_.emplace_back();
    if (PyMapping_Check(value) && !PyList_Check(value) && !PyTuple_Check(value)) {
      const Ref items = check(PyMapping_Items(value));
      for (const Ref& item : to_items(items.get(), key)) {
        const std::string& name = keep(to_string(PyTuple_GetItem(item.get(), 0), key));
        fields.push_back(field(PyTuple_GetItem(item.get(), 1), name.c_str()));
      }
    } else {
      for (const Ref& item : to_items(value, key)) fields.push_back(field(item.get(), ""));
    }
    return {key, "", 0, fields.data(), fields.size(), nullptr};
  }

  opaq_field leaf(const char* key, std::string given) {
    const std::string& text = keep(std::move(given));
    return {key, text.data(), text.size(), nullptr, 0, nullptr};
  }

  std::deque<std::string> texts_;
  std::deque<std::vector<opaq_field>> lists_;
  opaq_field root_;
};

}  // namespace opaq::python
