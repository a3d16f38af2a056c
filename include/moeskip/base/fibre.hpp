// A fibre: a function on a stack of its own that can stop in the middle and be taken up again, on the same thread. So
// code that is written for one sequence can wait where it needs others, without being cut into pieces.   POSIX ucontext
#pragma once

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <utility>

#include "moeskip/base/check.hpp"

#if defined(__SANITIZE_ADDRESS__)
  #define MOESKIP_ASAN 1
#elif defined(__has_feature)
  #if __has_feature(address_sanitizer)
    #define MOESKIP_ASAN 1
  #endif
#endif
#if defined(MOESKIP_ASAN)
  #include <sanitizer/common_interface_defs.h>
#endif

namespace moeskip {

class fibre {
 public:
  static constexpr std::size_t usual_stack = std::size_t{1} << 20;  // bytes of address space: only touched pages count

  /// Nothing runs before the first resume(). Throws error where the system has no room for a stack.
  explicit fibre(std::function<void()> body, std::size_t stack = usual_stack)
      : body_(std::move(body)), page_(std::size_t(sysconf(_SC_PAGESIZE))), stack_bytes_(stack) {
    void* p =
        mmap(nullptr, stack_bytes_ + page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    MOESKIP_CHECK(error, p != MAP_FAILED, "no memory for the stack of a fibre: ", stack_bytes_, " bytes");
    memory_ = static_cast<char*>(p);
    const bool guarded = mprotect(memory_, page_, PROT_NONE) == 0;  // stacks grow down: who overruns one stops here
    if (!guarded) munmap(memory_, stack_bytes_ + page_);
    MOESKIP_CHECK(error, guarded, "the stack of a fibre cannot be guarded: too many mappings?");
  }
  fibre(const fibre&) = delete;
  fibre& operator=(const fibre&) = delete;
  /// One that has begun and not ended is unwound: its pause() throws, so that what it holds is given back.
  ~fibre() {
    if (begun_ && !done_) {
      unwinding_ = true;
      switch_to_fibre();
    }
    munmap(memory_, stack_bytes_ + page_);
  }

  /// Runs the body until it pauses or ends; throws what the body threw.
  void resume() {
    MOESKIP_CHECK(error, !done_, "a fibre that has ended cannot be resumed");
    switch_to_fibre();
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }
  /// From inside the body: back to whoever resumed it.
  void pause() {
    if (unwinding_) throw unwound{};
    before_switch(&fake_stack_, caller_bottom_, caller_size_);
    swapcontext(&inside_, &outside_);
    after_switch(fake_stack_);
    if (unwinding_) throw unwound{};
  }
  bool done() const { return done_; }

 private:
  struct unwound {};

  void switch_to_fibre() {
    if (!std::exchange(begun_, true)) {
      getcontext(&inside_);
      inside_.uc_stack.ss_sp = memory_ + page_, inside_.uc_stack.ss_size = stack_bytes_;
      inside_.uc_link = nullptr;
      const auto self = reinterpret_cast<std::uintptr_t>(this);  // makecontext passes ints
      makecontext(&inside_, reinterpret_cast<void (*)()>(&enter), 2, unsigned(self),
                  unsigned(std::uint64_t(self) >> 32));
    }
    void* caller_fake_stack = nullptr;
    before_switch(&caller_fake_stack, memory_ + page_, stack_bytes_);
    swapcontext(&outside_, &inside_);
    after_switch(caller_fake_stack);
  }

  static void enter(unsigned low, unsigned high) {
    auto* self = reinterpret_cast<fibre*>(std::uintptr_t(std::uint64_t(high) << 32 | low));
    self->after_switch(nullptr);
    try {
      self->body_();
    } catch (const unwound&) {
    } catch (...) {
      self->failure_ = std::current_exception();
    }
    self->done_ = true;
    self->before_switch(nullptr, self->caller_bottom_, self->caller_size_);  // this stack is left for good
    setcontext(&self->outside_);
  }

  // AddressSanitizer wants to be told of stacks.
#if defined(MOESKIP_ASAN)
  void before_switch(void** keep, const void* bottom, std::size_t size) {
    __sanitizer_start_switch_fiber(keep, bottom, size);
  }
  void after_switch(void* kept) {
    const void* bottom = nullptr;
    std::size_t size = 0;
    __sanitizer_finish_switch_fiber(kept, &bottom, &size);
    if (on_fibre(bottom)) return;
    caller_bottom_ = bottom, caller_size_ = size;
  }
  bool on_fibre(const void* bottom) const { return bottom == memory_ + page_; }
#else
  void before_switch(void**, const void*, std::size_t) {}
  void after_switch(void*) {}
#endif

  std::function<void()> body_;
  std::size_t page_, stack_bytes_;
  char* memory_ = nullptr;  // a guard page, then the stack
  ucontext_t inside_{}, outside_{};
  const void* caller_bottom_ = nullptr;
  std::size_t caller_size_ = 0;
  void* fake_stack_ = nullptr;
  bool begun_ = false, done_ = false, unwinding_ = false;
  std::exception_ptr failure_;
};

}  // namespace moeskip

#undef MOESKIP_ASAN
