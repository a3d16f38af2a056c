// A config as strings, as it stands in a checkpoint's metadata, and the comparison of two.
#pragma once

#include <array>
#include <charconv>
#include <map>
#include <string>
#include <type_traits>

#include "moeskip/model/config.hpp"
#include "moeskip/version.hpp"

namespace moeskip {

using string_map = std::map<std::string, std::string>;

namespace detail {

template <class T> std::string to_text(const T& value) {
  if constexpr (std::is_enum_v<T>) {
    return text(static_cast<int>(value));
  } else if constexpr (requires { std::tuple_size<T>::value; }) {  // an array: its values, separated by spaces
    std::string out;
    for (const auto& one : value) out += text(out.empty() ? "" : " ", to_text(one));
    return out;
  } else {
    return text(value);
  }
}

/// Whether all of `from` is a T.
template <class T> bool parse(const std::string& from, T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    value = from == "true";
    return from == "true" || from == "false";
  } else if constexpr (std::is_same_v<T, std::string>) {
    value = from;
    return true;
  } else if constexpr (std::is_enum_v<T>) {
    int number = 0;
    const bool good = parse(from, number);
    value = static_cast<T>(number);
    return good;
  } else if constexpr (requires { std::tuple_size<T>::value; }) {
    std::size_t at = 0;
    for (auto& one : value) {
      if (at > from.size()) return false;  // too few
      const std::size_t end = std::min(from.find(' ', at), from.size());
      if (!parse(from.substr(at, end - at), one)) return false;
      at = end + 1;
    }
    return at == from.size() + 1;
  } else {
    const char* end = from.data() + from.size();
    const auto result = std::from_chars(from.data(), end, value);
    return result.ec == std::errc{} && result.ptr == end;
  }
}

/// Numbers that files of earlier versions do not have: there they were what they are by default.
inline bool is_newer(std::string_view key) {
  for (const std::string_view later : {"sizes.attention_scale", "sizes.rope_factor", "sizes.rope_low",
                                       "sizes.rope_high", "sizes.rope_original", "sizes.moe_from", "sizes.rotary_dim"})
    if (key == later) return true;
  return key.starts_with("router.") &&  // wherever in a nest of routers
         (key.ends_with(".from_progress") || key.ends_with(".settles_from"));
}

/// Throws config_error unless `fields` lists all numbers of a policy, so that none is lost in a checkpoint: what is
/// written as text and read back must be the policy. One without `fields` may only be as it is by default.
template <class P> void expect_saved_whole(std::string_view slot, const P& policy) {
  P copy{};
  if constexpr (requires { copy.fields(copy, [](std::string_view, auto&) {}); }) {
    string_map written;
    policy.fields(policy,
                  [&](std::string_view field, const auto& value) { written[std::string(field)] = to_text(value); });
    copy.fields(copy, [&](std::string_view field, auto& value) { parse(written[std::string(field)], value); });
  }
  MOESKIP_CHECK(
      config_error, copy == policy, "a checkpoint would lose numbers of slot ", slot, " (", P::name,
      "): list them all in the policy's `template <class Self, class F> static constexpr void fields(Self& self, "
      "F&& f)`");
}

}  // namespace detail

/// The policies of V by name.
template <class V> string_map policy_names() {
  string_map names{{"router", router::full_name<typename V::router>()},
                   {"shared_expert", std::string(V::shared_expert::name)},
                   {"expert_dropout", std::string(V::expert_dropout::name)},
                   {"layer_dropout", std::string(V::layer_dropout::name)},
                   {"exit_head", std::string(V::exit_head::name)}};
  visit_newer_slots<V>([&](std::string_view slot, std::string_view name, std::string_view usual) {
    if (name != usual) names[std::string(slot)] = name;
  });
  return names;
}

/// Everything that describes a config: "router" -> "top_k<2>", "sizes.dim" -> "128", "exits" -> "2 4 6". Throws
/// config_error for a policy with numbers that its `fields` does not list.
template <class V> string_map to_metadata(const config<V>& c) {
  detail::expect_saved_whole("router", c.router), detail::expect_saved_whole("expert_dropout", c.expert_dropout);
  detail::expect_saved_whole("layer_dropout", c.layer_dropout), detail::expect_saved_whole("exit_head", c.exit_head);
  detail::expect_saved_whole("layer_skip", c.layer_skip);
  string_map map = policy_names<V>();
  map["format"] = "moeskip";
  map["moeskip_version"] = text(MOESKIP_VERSION_MAJOR, ".", MOESKIP_VERSION_MINOR, ".", MOESKIP_VERSION_PATCH);
  std::string exits;
  for (int e = 0; e < layer_set::capacity; ++e)
    if (c.exits.contains(e)) exits += text(exits.empty() ? "" : " ", e);
  map["exits"] = exits;
  visit_fields(c, [&](std::string_view slot, std::string_view field, const auto& value) {
    map[text(slot, ".", field)] = detail::to_text(value);
  });
  return map;
}

/// "sizes.dim: expected 128, got 64" for every key of `expected` that `got` lacks or has otherwise, joined by "; ".
inline std::string differences(const string_map& expected, const string_map& got) {
  std::string out;
  for (const auto& [key, value] : expected) {
    const auto found = got.find(key);
    if (found != got.end() && found->second == value) continue;
    out += text(out.empty() ? "" : "; ", key, ": expected ", value.empty() ? "none" : value, ", got ",
                found == got.end()      ? "nothing"
                : found->second.empty() ? "none"
                                        : found->second);
  }
  return out;
}

/// The config that metadata describes. Throws file_error that names `path` and every slot or field at fault.
template <class V> config<V> from_metadata(const string_map& map, const std::string& path) {
  const auto format = map.find("format");
  MOESKIP_CHECK(file_error, format != map.end() && format->second == "moeskip", path,
                ": expected a moeskip checkpoint (metadata format=moeskip), got ",
                format == map.end() ? "none" : format->second);
  string_map expected = policy_names<V>();
  visit_newer_slots<V>([&](std::string_view slot, std::string_view name, std::string_view) {
    if (map.contains(std::string(slot))) expected[std::string(slot)] = name;
  });
  const std::string wrong = differences(expected, map);
  MOESKIP_CHECK(file_error, wrong.empty(), path, ": the file holds another variant: ", wrong);
  config<V> c;
  std::string bad;
  visit_fields(c, [&](std::string_view slot, std::string_view field, auto& value) {
    const std::string key = text(slot, ".", field);
    const auto found = map.find(key);
    if (found == map.end() && detail::is_newer(key)) return;  // the default of before
    if (found == map.end() || !detail::parse(found->second, value))
      bad += text(bad.empty() ? "" : "; ", key, ": expected a value, got ",
                  found == map.end() ? "nothing" : "'" + found->second + "'");
  });
  const auto exits = map.find("exits");
  if (exits == map.end()) bad += text(bad.empty() ? "" : "; ", "exits: expected a list, got nothing");
  for (std::size_t at = 0; exits != map.end() && at < exits->second.size();) {
    const std::size_t end = std::min(exits->second.find(' ', at), exits->second.size());
    const std::string one = exits->second.substr(at, end - at);
    int layer = 0;
    if (detail::parse(one, layer) && layer > 0 && layer < layer_set::capacity) c.exits.insert(layer);
    else bad += text(bad.empty() ? "" : "; ", "exits: expected layers from 1 to 127, got '", one, "'");
    at = end + 1;
  }
  MOESKIP_CHECK(file_error, bad.empty(), path, ": metadata: ", bad);
  MOESKIP_CHECK(file_error, valid(c), path, ": metadata: ", problem(c));
  return c;
}

}  // namespace moeskip
