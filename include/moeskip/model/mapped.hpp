// Models whose weights stay in their file: started at once, shared by all processes that run them, and larger than
// memory if need be. Pages come when they are touched and leave when memory is short; experts are asked for before they
// are touched (memory/paging.hpp), which is several times as fast.
// Where memory suffices, load() puts weights on huge pages, and they can be trained.
#pragma once

#include "moeskip/model/mapped_folder.hpp"

namespace moeskip {

/// The model in a file that save() wrote from a backend that stores weights as B does. The file is not written to, nor
/// must it be while the model lives (save() replaces files, which does no harm). Where tensors stand as they would in
/// memory, which takes extents that are multiples of 64, a model that is trained gets pages of its own; otherwise it
/// runs and can be saved, as one of a folder. Throws file_error that names what differs from V, or keeps weights from
/// being used where they stand.
/// In a folder, where V is a preset, what cannot be used so is copied, tensor by tensor: see model/mapped_folder.hpp.
template <class V, class B> model<V, B> load_mapped(const std::filesystem::path& path) {
  if constexpr (requires { typename V::huggingface; })
    if (std::filesystem::is_directory(path)) return load_pretrained_mapped<V, B>(path);
  using W = weight_t<B>;
  static_assert(std::is_same_v<typename B::family, on_cpu> || std::is_same_v<typename B::family, on_reference>,
                "moeskip: load_mapped leaves weights in a file of the host, which this backend does not see: use load");
  const auto file = std::make_shared<safetensors_file>(path, mapping::copy_on_write);
  const config<V> c = from_metadata<V>(file->metadata(), path.string());
  model_weights<V, W> nothing;  // only measured
  const std::vector<tensor_info> tensors = bind_weights<V, W>(c, nothing, static_cast<W*>(nullptr));
  detail::refuse_strangers(*file, tensors, path.string());
  outside_weights<const W> in_place{{}, file};
  bool as_in_memory = true;
  for (const tensor_info& t : tensors) {
    const array_info& stored = file->expect(t.name, std::vector<std::int64_t>(t.shape.begin(), t.shape.end()));
    const std::byte* const bytes = file->bytes(stored).data();
    MOESKIP_CHECK(file_error, stored.dtype == dtype_of<W>(), path.string(), ": tensor ", in_quotes(t.name),
                  ": expected elements of ", dtype_of<W>(), " that can be used where they stand, got ", stored.dtype,
                  ": load() converts them");
    const W* const at = reinterpret_cast<const W*>(bytes);
    const auto refuse_unless = [&](bool fits, std::string_view where) {
      MOESKIP_CHECK(file_error, fits, path.string(), ": tensor ", in_quotes(t.name), ": expected ", where, ", got ",
                    stored.offset, " bytes from the beginning: load() and save() put it there");
    };
    refuse_unless(reinterpret_cast<std::uintptr_t>(bytes) % alignof(W) == 0,
                  text("a multiple of ", alignof(W), " bytes"));
    if (t.joined)
      refuse_unless(at == in_place.at.back() + tensors[in_place.at.size() - 1].size,
                    "it directly behind the one that it is read with");
    in_place.at.push_back(at);
    as_in_memory = as_in_memory && at == in_place.at.front() + t.offset;
  }
  if (!as_in_memory)
    return model<V, B>(
        c, [](index_t size) { return buffer<W>(size); }, std::move(in_place));
  const index_t size = tensors.back().offset + tensors.back().size;
  W* const block = const_cast<W*>(in_place.at.front());  // mapped as writable
  return model<V, B>(c, [&](index_t) { return buffer<W>(block, size, file); });
}

}  // namespace moeskip
