// A thread's stream: lists on their way, graphs, what ops take between them. nvcc alone reads this (cuda.cuh).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "moeskip/backend/cuda/device_error.cuh"
#include "moeskip/backend/cuda/script.hpp"
#include "moeskip/memory/arena.hpp"

namespace moeskip::detail {

/// What a thread asked the device for and has not waited for.
class device_stream {
 public:
  static device_stream& here() {
    thread_local device_stream s;
    return s;
  }
  /// A copy on the device, made in the stream by way of pinned memory. All layers of a call ask for the same few lists:
  /// what was copied a moment ago and is still the same is not copied again.
  const void* list(const void* from, std::size_t bytes) {
    const auto begin = std::ptrdiff_t(recent_.size()) > most_recent ? recent_.end() - most_recent : recent_.begin();
    for (auto known = recent_.end(); known != begin;)
      if (--known; known->bytes == bytes && std::memcmp(known->host, from, bytes) == 0) return known->device;
    const placed to = place(bytes);
    std::memcpy(to.host, from, bytes);
    expect_success(cudaMemcpyAsync(to.device, to.host, bytes, cudaMemcpyHostToDevice, cudaStreamPerThread),
                   "cudaMemcpyAsync", "lists of rows");
    recent_.push_back(to);
    return to.device;
  }
  void settle() { expect_success(wait(), "cudaStreamSynchronize", last); }
  cudaError_t wait() {
    const cudaError_t code = cudaStreamSynchronize(cudaStreamPerThread);
    at_ = 0, used_ = 0, recent_.clear();
    return code;
  }
  /// Keeps back what the stream is asked for.
  void begin_graph() {
    if (kept_back_) return;
    // Relaxed: an arena may take memory meanwhile.
    expect_success(cudaStreamBeginCapture(cudaStreamPerThread, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture",
                   "a graph");
    kept_back_ = true;
  }
  /// Starts what was kept back.
  void start_graph() {
    if (!std::exchange(kept_back_, false)) return;
    cudaGraph_t kept = nullptr;
    expect_success(cudaStreamEndCapture(cudaStreamPerThread, &kept), "cudaStreamEndCapture", last);
    const std::unique_ptr<cudaGraph_t, void (*)(cudaGraph_t*)> owner(&kept,
                                                                     [](cudaGraph_t* g) { cudaGraphDestroy(*g); });
    std::size_t nodes = 0;
    expect_success(cudaGraphGetNodes(kept, nullptr, &nodes), "cudaGraphGetNodes", last);
    if (nodes == 0) return;
    // Where rows are left out at random there are many numbers of nodes.
    if (graphs_.size() >= most_graphs && !graphs_.contains(nodes)) destroy_graphs();
    cudaGraphExec_t& made = graphs_[nodes];
    cudaGraphExecUpdateResultInfo what{};
    if (made && cudaGraphExecUpdate(made, kept, &what) != cudaSuccess) {  // other kernels, as many of them
      cudaGetLastError();
      expect_success(cudaGraphExecDestroy(std::exchange(made, nullptr)), "cudaGraphExecDestroy", last);
    }
    if (!made) expect_success(cudaGraphInstantiate(&made, kept, 0), "cudaGraphInstantiate", last);
    expect_success(cudaGraphLaunch(made, cudaStreamPerThread), "cudaGraphLaunch", last);
  }
  /// Throws away what was kept back.
  void drop_graph() {
    cudaGraph_t kept = nullptr;
    if (std::exchange(kept_back_, false) && cudaStreamEndCapture(cudaStreamPerThread, &kept) == cudaSuccess && kept)
      cudaGraphDestroy(kept);
    cudaGetLastError();
  }
  ~device_stream() {
    destroy_graphs();
    for (const chunk& c : chunks_) cudaFreeHost(c.host), cudaFree(c.device);
  }

  arena scratch;
  counters_of_blocks counters;
  const char* last = "nothing was asked for";  // the phase launched last

 private:
  static constexpr std::ptrdiff_t most_recent = 8;
  static constexpr std::size_t most_graphs = 64;
  struct placed {
    void *host, *device;
    std::size_t bytes;
  };
  struct chunk {
    char *host, *device;
    std::size_t size;
  };
  void destroy_graphs() {
    for (const auto& [nodes, made] : graphs_)
      if (made) cudaGraphExecDestroy(made);
    graphs_.clear();
  }
  placed place(std::size_t bytes) {
    const std::size_t room = (bytes + alignment - 1) / alignment * alignment;
    while (at_ < chunks_.size() && used_ + room > chunks_[at_].size) ++at_, used_ = 0;
    if (at_ == chunks_.size()) {
      chunk fresh{nullptr, nullptr, std::max(room, std::size_t{1} << 20)};
      expect_success(cudaHostAlloc(&fresh.host, fresh.size, cudaHostAllocDefault), "cudaHostAlloc", "lists of rows");
      expect_success(cudaMalloc(&fresh.device, fresh.size), "cudaMalloc", "lists of rows");
      chunks_.push_back(fresh);
    }
    const placed to{chunks_[at_].host + used_, chunks_[at_].device + used_, bytes};
    used_ += room;
    return to;
  }
  bool kept_back_ = false;
  std::map<std::size_t, cudaGraphExec_t> graphs_;  // by the number of their nodes
  std::vector<chunk> chunks_;
  std::vector<placed> recent_;
  std::size_t at_ = 0, used_ = 0;
};

}  // namespace moeskip::detail
