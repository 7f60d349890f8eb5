// Compares the structs of an argument list with the layouts that the compiler reported.
#include "placement.h"

#include <algorithm>

#include "base/error.h"
#include "tensor_map.h"

namespace opaq {
namespace {

using Form = Argument::Form;

std::string parameter_name(size_t index) { return "parameter " + std::to_string(index + 1); }

int64_t items_of(const std::vector<int64_t>& extents) {
  int64_t count = 1;
  for (const int64_t extent : extents) count *= extent;
  return count;
}

int64_t size_of(const ParamType& type) { return type.size * items_of(type.extents); }

// "long long[4]"
std::string spelled(const ParamType& type) {
  std::string text = type.text.empty() ? "unknown" : type.text;
  for (const int64_t extent : type.extents) text += "[" + std::to_string(extent) + "]";
  return "`" + text + "`";
}

// The name without namespaces and template arguments: "Params" of "ns::Params<float>".
std::string bare_name(std::string_view name) {
  name = name.substr(0, name.find('<'));
  if (const size_t colons = name.rfind("::"); colons != std::string_view::npos)
    name.remove_prefix(colons + 2);
  return std::string(name);
}

class Placement {
 public:
  Placement(const Subject& subject, const std::vector<ParamType>& params)
      : subject_(subject), params_(params) {}

  std::vector<PlacedValue> take() {
    const std::vector<Argument>& list = subject_.implementation->launch.args;
    for (size_t i = 0; i < list.size(); ++i) {
      parameter_ = i;
      if (list[i].form == Form::TensorMap) {
        placed_.push_back(
            {i, 0, 1, &list[i], params_[i], argument_text(subject_, i), parameter_name(i)});
        check_holds_tensor_map(placed_.back());
      } else if (list[i].form == Form::Value) {
        placed_.push_back(
            {i, -1, 1, &list[i], params_[i], argument_text(subject_, i), parameter_name(i)});
      } else {
        top(list[i], params_[i]);
      }
    }
    return std::move(placed_);
  }

 private:
  void top(const Argument& argument, const ParamType& param) {
    if (param.kind != ParamType::Kind::Struct) {
      fail(ErrorKind::Compile, argument_text(subject_, parameter_) + " is a struct, but " +
                                   describe(parameter_name(parameter_), param) +
                                   "; check the order of args");
    }
    if (param.fields.empty() && param.size != 1) {
      const Kind& kind = *subject_.implementation->kind;
      fail(ErrorKind::Compile,
           argument_text(subject_, parameter_) + " is a struct, but the fields of " +
               parameter_name(parameter_) + " are not known: " + std::string(kind.article) +
               " does not tell them; give the kernel's CUDA source, or pass the struct in a tensor "
               "that holds its bytes");
    }
    place(argument, param, 0, "");
  }

  // `path`: of the field, "" for the parameter itself.
  void place(const Argument& argument, const ParamType& type, int64_t offset,
             const std::string& path) {
    if (type.text.ends_with('&'))
      refuse(path, "is " + spelled(type) + ", a reference, which cannot be set; make it a pointer");
    if (!type.extents.empty()) return array(argument, type, offset, path);
    if (argument.form == Form::TensorMap) {
      add(argument, type, offset, 1, path);
      return check_holds_tensor_map(placed_.back());
    }
    if (type.kind == ParamType::Kind::Struct) return structure(argument, type, offset, path);
    if (argument.form != Form::Value)
      refuse(path, "is " + spelled(type) + ", which takes one value; got " + argument.text);
    if (argument.expr.type() == Type::IntList)
      refuse(path, "is " + spelled(type) + ", which takes one value; got the int[] " +
                       argument.text + ": take one of its items, such as " + argument.expr.text() +
                       "[0]");
    add(argument, type, offset, 1, path);
  }

  void add(const Argument& argument, const ParamType& type, int64_t offset, int64_t count,
           const std::string& path) {
    placed_.push_back({parameter_, offset, count, &argument, type,
                       subject_.op + ": argument " + std::to_string(parameter_ + 1) + ", field `" +
                           path + "`: `" + argument.text + "`",
                       "field `" + path + "` of " + parameter_name(parameter_)});
  }

  void array(const Argument& argument, const ParamType& type, int64_t offset,
             const std::string& path) {
    if (argument.form == Form::Value && argument.expr.type() == Type::IntList) {
      if (type.extents.size() != 1)
        refuse(path, "is " + spelled(type) + "; an int[] fills an array of one dimension");
      ParamType item = type;
      item.extents.clear();
      return add(argument, item, offset, type.extents[0], path);
    }
    if (argument.form != Form::List)
      refuse(path, "is " + spelled(type) + ", which takes a list; got " + argument.text);
    const int64_t extent = type.extents[0];
    const auto given = static_cast<int64_t>(argument.items.size());
    if (given > extent || (given < extent && !argument.rest_is_zero)) {
      refuse(path, "is " + spelled(type) + "; got a list of " + std::to_string(given) +
                       (given < extent ? ": end it with ... where the other items are zero" : ""));
    }
    ParamType item = type;
    item.extents.erase(item.extents.begin());
    for (int64_t i = 0; i < given; ++i)
      place(argument.items[i], item, offset + i * size_of(item),
            path + "[" + std::to_string(i) + "]");
  }

  void structure(const Argument& argument, const ParamType& type, int64_t offset,
                 const std::string& path) {
    if (argument.form == Form::Value)
      refuse(path, "is the struct " + spelled(type) + "; got `" + argument.text +
                       "`: give its fields, " + fields_text(type));
    if (!argument.struct_name.empty() && !type.text.empty() &&
        bare_name(argument.struct_name) != bare_name(type.text))
      refuse(path, "is the struct " + spelled(type) + "; got struct(\"" + argument.struct_name +
                       "\", ...)");
    std::vector<const FieldType*> given;
    for (size_t i = 0; i < argument.items.size(); ++i) {
      given.push_back(&find(argument, i, type, path));
      const FieldType& field = *given.back();
      const std::string field_path = path.empty() ? field.name : path + "." + field.name;
      if (field.bits != 0)
        refuse(field_path, "is a bit-field, which cannot be set; make it a whole number");
      for (size_t k = 0; k < i; ++k) {
        if (overlap(*given[k], field))
          refuse(field_path, "shares its memory with `" + given[k]->name + "`; give one of them");
      }
      place(argument.items[i], field.type, offset + field.offset, field_path);
    }
    if (argument.rest_is_zero) return;
    for (const FieldType& field : type.fields) {
      const auto covers = [&](const FieldType* other) { return overlap(*other, field); };
      if (std::any_of(given.begin(), given.end(), covers)) continue;
      refuse(path.empty() ? field.name : path + "." + field.name,
             "(" + spelled(field.type) +
                 ") is not given; give it, or write ... as the last item "
                 "where the fields that are not given are zero");
    }
  }

  const FieldType& find(const Argument& argument, size_t item, const ParamType& type,
                        const std::string& path) const {
    if (argument.form == Form::List) {
      if (item >= type.fields.size())
        refuse(path, "is the struct " + spelled(type) + " of " +
                         std::to_string(type.fields.size()) + " fields; got a list of " +
                         std::to_string(argument.items.size()));
      return type.fields[item];
    }
    std::vector<std::string> names;
    for (const FieldType& field : type.fields) {
      if (field.name == argument.names[item]) return field;
      names.push_back(field.name);
    }
    refuse(path, "is the struct " + spelled(type) + ", which has no field `" +
                     argument.names[item] + "`" + did_you_mean(argument.names[item], names) +
                     "; its fields are " + fields_text(type));
  }

  static bool overlap(const FieldType& a, const FieldType& b) {
    return a.offset < b.offset + size_of(b.type) && b.offset < a.offset + size_of(a.type);
  }

  static std::string fields_text(const ParamType& type) {
    std::vector<std::string> texts;
    for (const FieldType& field : type.fields)
      texts.push_back(field.name + " (" + spelled(field.type) + ")");
    return texts.empty() ? "none" : join(texts);
  }

  [[noreturn]] void refuse(const std::string& path, const std::string& problem) const {
    const std::string where = subject_.op + ": argument " + std::to_string(parameter_ + 1) + ": ";
    fail(ErrorKind::Compile,
         where + (path.empty() ? "the parameter" : "field `" + path + "`") + " " + problem);
  }

  const Subject& subject_;
  const std::vector<ParamType>& params_;
  size_t parameter_ = 0;  // that is being placed
  std::vector<PlacedValue> placed_;
};

}  // namespace

std::vector<PlacedValue> placed_values(const Subject& subject,
                                       const std::vector<ParamType>& params) {
  return Placement(subject, params).take();
}

std::string describe(const std::string& target, const ParamType& type) {
  if (type.kind == ParamType::Kind::Struct) {
    const std::string text =
        target + (type.text.empty() ? " is a struct" : " is the struct `" + type.text + "`");
    return type.size ? text + " of " + std::to_string(type.size) + " bytes" : text;
  }
  if (!type.text.empty()) return target + " is `" + type.text + "`";
  if (type.size)
    return target + " has " + std::to_string(type.size) + (type.size == 1 ? " byte" : " bytes");
  return target + " is of unknown type";
}

}  // namespace opaq
