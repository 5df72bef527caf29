// Runs CUDA kernels on the CPU, from the very source that nvcc compiles. See README.md. C++20.
//
// Every CUDA thread of a block is a fiber: it runs until it waits (__syncthreads, a warp
// collective) or ends, then another one runs. Blocks run one after another. What hardware would
// answer with a hang or with undefined behaviour is an error here that says where.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

// ---- The language: qualifiers, built-in variables and types.

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 : uint3 {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulator {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

inline std::string name(const uint3& index) {
  return text("(", index.x, ", ", index.y, ", ", index.z, ")");
}

constexpr unsigned kLanes = 32;
constexpr std::size_t kSharedLimit = 48 << 10;  // what a block has without asking for more

// A place in a kernel's source.
struct Site {
  const char* file;
  int line;
  bool operator==(const Site& other) const {
    return line == other.line && std::strcmp(file, other.file) == 0;
  }
  bool operator<(const Site& other) const {
    const int files = std::strcmp(file, other.file);
    return files ? files < 0 : line < other.line;
  }
};
inline std::string name(const Site& site) { return text(site.file, ":", site.line); }

// ---- Fibers: a stack, and a switch from one to another.

class Stack {
 public:
#ifdef __SANITIZE_ADDRESS__
  static constexpr std::size_t kBytes = 512 << 10;
#else
  static constexpr std::size_t kBytes = 128 << 10;
#endif
  static constexpr std::size_t kGuard = 4096;  // overflow faults instead of overwriting

  Stack() {
    void* memory = mmap(nullptr, kBytes + kGuard, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, kGuard, PROT_NONE);
    memory_ = static_cast<char*>(memory);
  }
  ~Stack() { munmap(memory_, kBytes + kGuard); }
  Stack(const Stack&) = delete;
  char* bottom() const { return memory_ + kGuard; }
  char* top() const { return bottom() + kBytes; }

 private:
  char* memory_;
};

#ifdef __x86_64__
// Saves what a called function must preserve, and the stack; continues on the other stack.
__attribute__((naked, noinline)) inline void switch_stack(void**, void*) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}
struct Context {
  void* pointer = nullptr;
  void prepare(const Stack& stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack.top());
    *--top = nullptr;  // entry's return address: it never returns
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    pointer = top;
  }
  void switch_to(Context& other) { switch_stack(&pointer, other.pointer); }
};
#else
struct Context {
  ucontext_t context;
  void prepare(const Stack& stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack.bottom();
    context.uc_stack.ss_size = Stack::kBytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void switch_to(Context& other) { swapcontext(&context, &other.context); }
};
#endif

// ---- Race detection: races.cpp, in builds where the compiler reports every access to memory.

enum class Access { read, write, atomic };

namespace races {
#ifdef EMULATOR_RACES
void begin_launch(const uint3& grid, const uint3& block);
void begin_block(const uint3& index);
void enter(unsigned thread, const char* stack, std::size_t bytes);  // that thread runs from now on
void leave();                                                       // no thread does
void pause(bool on);  // the emulator's own accesses on behalf of the running thread
void synchronise_block();
void synchronise_warp(unsigned first, unsigned mask);
void forget(const void* memory, std::size_t bytes);  // it was allocated anew
void access(const void* address, std::size_t bytes, Access kind, const void* code);
std::string take();  // what was found first, or nothing
#else
inline void begin_launch(const uint3&, const uint3&) {}
inline void begin_block(const uint3&) {}
inline void enter(unsigned, const char*, std::size_t) {}
inline void leave() {}
inline void pause(bool) {}
inline void synchronise_block() {}
inline void synchronise_warp(unsigned, unsigned) {}
inline void forget(const void*, std::size_t) {}
inline void access(const void*, std::size_t, Access, const void*) {}
inline std::string take() { return {}; }
#endif

struct Pause {
  Pause() { pause(true); }
  ~Pause() { pause(false); }
};
}  // namespace races

// ---- One launch.

enum class Order { forward, reverse, shuffled };
enum class State { ready, at_barrier, at_collective, finished };

// Called once with the operands of all lanes in the mask (others null); fills in their results.
using Combine = void (*)(void** operands, unsigned mask);

// 16 bytes on their way from global to shared memory.
struct Copy {
  char* to;
  const char* from;
};

struct Thread {
  uint3 index;
  State state = State::ready;
  Site site{"", 0};
  unsigned mask = 0;
  void* operand = nullptr;
  Combine combine = nullptr;  // null for __syncwarp, which alone orders the lanes' memory
  std::vector<Copy> copies;   // under way
  Context context;
  std::unique_ptr<Stack> stack;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

// Global memory that one launch touched, if tracing is on. A GPU moves memory in 32-byte sectors.
struct Traffic {
  std::uint64_t loaded_sectors = 0, stored_sectors = 0;  // distinct ones
  std::uint64_t loaded_bytes = 0, stored_bytes = 0;      // as often as the threads asked for them
};

class SectorSet {
 public:
  void add(std::uintptr_t address, std::size_t bytes) {
    for (auto s = address / 32; s <= (address + bytes - 1) / 32; ++s) sectors_.push_back(s);
    if (sectors_.size() > limit_) {
      compact();
      limit_ = std::max<std::size_t>(limit_, 2 * sectors_.size());
    }
  }
  std::uint64_t count() {
    compact();
    return sectors_.size();
  }

 private:
  void compact() {
    std::sort(sectors_.begin(), sectors_.end());
    sectors_.erase(std::unique(sectors_.begin(), sectors_.end()), sectors_.end());
  }
  std::vector<std::uintptr_t> sectors_;
  std::size_t limit_ = 1 << 20;
};

// Filled with ones: NaN in every floating-point type. Each variable is a heap block of its own, so
// that AddressSanitizer sees reads and writes past its end.
class SharedVariable {
 public:
  explicit SharedVariable(std::size_t bytes)
      : memory_(static_cast<char*>(std::aligned_alloc(16, (bytes + 15) / 16 * 16))), bytes_(bytes) {
    if (memory_ == nullptr) throw std::bad_alloc();
    std::memset(memory_, 0xff, bytes);
    races::forget(memory_, bytes);
  }
  ~SharedVariable() {
    races::forget(memory_, bytes_);  // the next to have it may be the emulator itself
    std::free(memory_);
  }
  SharedVariable(const SharedVariable&) = delete;
  void* memory() const { return memory_; }
  bool holds(const void* pointer) const { return memory_ <= pointer && pointer < memory_ + bytes_; }

 private:
  char* memory_;
  std::size_t bytes_;
};

// What a kernel is launched with; the arguments lie as the ABI of CUDA has them.
struct LaunchRecord {
  const void* kernel;
  unsigned grid[3], block[3];
  std::size_t dynamic_bytes;
  const void* arguments;
  std::size_t argument_bytes;
};

class Machine {
 public:
  Order order = Order::forward;
  std::uint64_t seed = 0;
  bool tracing = false;
  std::vector<Traffic> launches;  // since tracing began
  // Told of every launch before it runs; where it says true, it ran the launch itself.
  bool (*observer)(const LaunchRecord*) = nullptr;

  template <class Body>
  void run(dim3 grid, dim3 block, std::size_t dynamic_bytes, Body& body) {
    const std::lock_guard<std::mutex> one_launch_at_a_time(mutex_);
    check_configuration(grid, block, dynamic_bytes);
    gridDim = grid;
    blockDim = block;
    races::begin_launch(grid, block);
    body_ = [](void* self) { (*static_cast<Body*>(self))(); };
    argument_ = &body;
    dynamic_bytes_ = dynamic_bytes;
    loads_ = stores_ = SectorSet();
    traffic_ = Traffic();
    std::mt19937_64 random(seed);
    for (const std::uint64_t b : permutation(std::uint64_t(grid.x) * grid.y * grid.z, random)) {
      blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y),
                  unsigned(b / grid.x / grid.y)};
      run_block(random);
    }
    if (tracing) {
      traffic_.loaded_sectors = loads_.count();
      traffic_.stored_sectors = stores_.count();
      launches.push_back(traffic_);
    }
  }

  // -- Called by kernels, inside a fiber.

  void barrier(Site site) {
    const races::Pause pause;
    wait(State::at_barrier, site);
  }

  void collective(unsigned mask, void* operand, Combine combine, Site site) {
    const races::Pause pause;
    const unsigned lane = current_ % kLanes;
    if (!(mask >> lane & 1)) {
      throw Error(text("lane ", lane, " calls a warp collective whose mask ", std::hex, mask,
                       " does not name it, at ", name(site)));
    }
    Thread& thread = threads_[current_];
    thread.mask = mask;
    thread.operand = operand;
    thread.combine = combine;
    wait(State::at_collective, site);
  }

  // The block's variable that is declared at that place: the same memory for all its threads.
  void* shared(std::size_t bytes, Site site) {
    const races::Pause pause;
    auto [found, is_new] = shared_.try_emplace(site);
    if (is_new) found->second = allocate_shared(bytes, site);
    return found->second->memory();
  }
  void* dynamic_shared() {
    const races::Pause pause;
    if (!dynamic_) dynamic_ = allocate_shared(dynamic_bytes_, {"dynamic shared memory", 0});
    return dynamic_->memory();
  }

  // cp.async, which may write at any time from now until the thread waits: here it does then, and
  // whoever accesses the place before the next barrier races with it.
  void start_copy(void* to, const void* from, Site site) {
    {
      const races::Pause pause;
      if (!is_shared(to) || reinterpret_cast<std::uintptr_t>(to) % 16 != 0) {
        throw Error(text("an asynchronous copy must go to 16 aligned bytes of shared memory, got ",
                         to, " from thread ", name(threadIdx), " of block ", name(blockIdx),
                         ", at ", name(site)));
      }
    }
    on_load(from, 16);
    races::access(to, 16, Access::write, __builtin_return_address(0));
    const races::Pause pause;
    threads_[current_].copies.push_back({static_cast<char*>(to), static_cast<const char*>(from)});
  }
  // cp.async.wait_all.
  void wait_for_copies() {
    for (const Copy& copy : threads_[current_].copies) {
      for (int n = 0; n < 16; ++n) copy.to[n] = copy.from[n];
    }
    const races::Pause pause;
    threads_[current_].copies.clear();
  }

  bool is_shared(const void* pointer) const {
    return (dynamic_ && dynamic_->holds(pointer)) ||
           std::any_of(shared_.begin(), shared_.end(),
                       [&](const auto& each) { return each.second->holds(pointer); });
  }

  void on_load(const void* pointer, std::size_t bytes) {
    const races::Pause pause;
    check_alignment(pointer, bytes, "load");
    if (tracing) count(loads_, traffic_.loaded_bytes, pointer, bytes);
  }
  void on_store(const void* pointer, std::size_t bytes) {
    const races::Pause pause;
    check_alignment(pointer, bytes, "store");
    if (tracing) count(stores_, traffic_.stored_bytes, pointer, bytes);
  }
  void on_atomic(const void* pointer, std::size_t bytes, const void* code) {
    races::access(pointer, bytes, Access::atomic, code);
    const races::Pause pause;
    if (is_shared(pointer)) return;
    on_load(pointer, bytes);
    on_store(pointer, bytes);
  }

 private:
  static void check_configuration(dim3 grid, dim3 block, std::size_t dynamic_bytes) {
    const std::uint64_t threads = std::uint64_t(block.x) * block.y * block.z;
    const bool fits = threads >= 1 && threads <= 1024 && block.z <= 64 && grid.x >= 1 &&
                      grid.x < (1u << 31) && grid.y >= 1 && grid.y < 65536 && grid.z >= 1 &&
                      grid.z < 65536;
    if (!fits) {
      throw Error(text("no GPU takes a grid of ", name(grid), " blocks of ", name(block)));
    }
    if (dynamic_bytes > kSharedLimit) {
      throw Error(text(dynamic_bytes, " bytes of dynamic shared memory are more than a block has"));
    }
  }

  std::vector<std::uint64_t> permutation(std::uint64_t count, std::mt19937_64& random) const {
    std::vector<std::uint64_t> result(count);
    std::iota(result.begin(), result.end(), 0);
    if (order == Order::reverse) std::reverse(result.begin(), result.end());
    if (order == Order::shuffled) std::shuffle(result.begin(), result.end(), random);
    return result;
  }

  void run_block(std::mt19937_64& random) {
    const unsigned count = blockDim.x * blockDim.y * blockDim.z;
    reclaim_stacks();
    threads_ = std::vector<Thread>(count);
    for (unsigned t = 0; t < count; ++t) {
      threads_[t].index = {t % blockDim.x, t / blockDim.x % blockDim.y,
                           t / blockDim.x / blockDim.y};
    }
    shared_.clear();
    dynamic_.reset();
    shared_bytes_ = 0;
    races::begin_block(blockIdx);
    const auto turns = permutation(count, random);
    for (;;) {
      for (const std::uint64_t t : turns) {
        if (threads_[t].state == State::ready) resume(unsigned(t));
      }
      if (all(State::finished)) return;
      if (!release()) throw Error(explain_deadlock());
    }
  }

  // Lets every wait end that can. False if none can.
  bool release() {
    bool any = false;
    for (unsigned first = 0; first < threads_.size(); first += kLanes) any |= release_warp(first);
    if (any) return true;
    if (!all(State::at_barrier)) return false;
    for (const Thread& thread : threads_) {
      if (!(thread.site == threads_[0].site)) return false;
    }
    for (Thread& thread : threads_) thread.state = State::ready;
    races::synchronise_block();
    return true;
  }

  bool release_warp(unsigned first) {
    bool any = false;
    const unsigned lanes = std::min<std::size_t>(kLanes, threads_.size() - first);
    for (unsigned lane = 0; lane < lanes; ++lane) {
      const Thread& caller = threads_[first + lane];
      if (caller.state != State::at_collective) continue;
      void* operands[kLanes] = {};
      bool complete = true;
      for (unsigned other = 0; other < kLanes && complete; ++other) {
        if (!(caller.mask >> other & 1)) continue;
        complete = other < lanes && arrived_together(caller, threads_[first + other]);
        if (complete) operands[other] = threads_[first + other].operand;
      }
      if (!complete) continue;
      const unsigned mask = caller.mask;
      if (caller.combine != nullptr) {
        caller.combine(operands, mask);
      } else {
        races::synchronise_warp(first, mask);
      }
      for (unsigned other = 0; other < lanes; ++other) {
        if (mask >> other & 1) threads_[first + other].state = State::ready;
      }
      any = true;
    }
    return any;
  }

  static bool arrived_together(const Thread& a, const Thread& b) {
    return b.state == State::at_collective && a.mask == b.mask && a.site == b.site;
  }

  std::string explain_deadlock() const {
    std::map<std::pair<State, Site>, std::vector<unsigned>> groups;
    for (unsigned t = 0; t < threads_.size(); ++t) {
      const bool finished = threads_[t].state == State::finished;
      groups[{threads_[t].state, finished ? Site{"", 0} : threads_[t].site}].push_back(t);
    }
    std::ostringstream out;
    const bool divergent = std::all_of(threads_.begin(), threads_.end(), [](const Thread& thread) {
      return thread.state == State::at_barrier || thread.state == State::finished;
    });
    out << (divergent ? "divergent barrier" : "deadlock") << " in block " << name(blockIdx) << ":";
    for (const auto& [key, members] : groups) {
      out << "\n  " << members.size() << " threads, the first of them "
          << name(threads_[members[0]].index) << ", ";
      if (key.first == State::finished) out << "have ended";
      if (key.first == State::at_barrier) out << "wait at __syncthreads, " << name(key.second);
      if (key.first == State::at_collective) {
        out << "wait at a warp collective of mask " << std::hex << threads_[members[0]].mask
            << std::dec << ", " << name(key.second);
      }
    }
    return out.str();
  }

  bool all(State state) const {
    return std::all_of(threads_.begin(), threads_.end(),
                       [&](const Thread& thread) { return thread.state == state; });
  }

  // A thread that never waits gives its stack to the next: such kernels need only one.
  void resume(unsigned number) {
    Thread& thread = threads_[number];
    if (!thread.stack) {
      if (idle_.empty()) idle_.push_back(std::make_unique<Stack>());
      thread.stack = std::move(idle_.back());
      idle_.pop_back();
      // A fiber never returns, so what its frames marked as out of bounds stays marked.
      ASAN_UNPOISON_MEMORY_REGION(thread.stack->bottom(), Stack::kBytes);
      thread.context.prepare(*thread.stack, &Machine::enter);
    }
    current_ = number;
    threadIdx = thread.index;
    start_switch(&fake_stack_, thread.stack->bottom(), Stack::kBytes);
    races::enter(number, thread.stack->bottom(), Stack::kBytes);
    scheduler_.switch_to(thread.context);
    races::leave();
    arrive_in_scheduler();
    if (thread.state == State::finished) idle_.push_back(std::move(thread.stack));
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    if (const std::string race = races::take(); !race.empty()) throw Error(race);
  }

  void wait(State state, Site site) {
    Thread& thread = threads_[current_];
    thread.state = state;
    thread.site = site;
    start_switch(&thread.fake_stack, scheduler_bottom_, scheduler_size_);
    thread.context.switch_to(scheduler_);
    arrive_in_fiber(thread.fake_stack);
  }

  static void enter();
  void run_fiber() {
    arrive_in_fiber(nullptr);
    try {
      body_(argument_);
      if (!threads_[current_].copies.empty()) {
        throw Error(text("thread ", name(threadIdx), " of block ", name(blockIdx),
                         " ends without waiting for its asynchronous copies"));
      }
    } catch (...) {
      error_ = std::current_exception();
    }
    races::leave();
    Thread& thread = threads_[current_];
    thread.state = State::finished;
    start_switch(nullptr, scheduler_bottom_, scheduler_size_);
    thread.context.switch_to(scheduler_);
  }

  void reclaim_stacks() {
    for (Thread& thread : threads_) {
      if (thread.stack) idle_.push_back(std::move(thread.stack));
    }
  }

  // Tells AddressSanitizer which stack is in use.
#ifdef __SANITIZE_ADDRESS__
  static void start_switch(void** fake, const void* bottom, std::size_t size) {
    __sanitizer_start_switch_fiber(fake, bottom, size);
  }
  void arrive_in_scheduler() { __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr); }
  void arrive_in_fiber(void* fake) {
    __sanitizer_finish_switch_fiber(fake, &scheduler_bottom_, &scheduler_size_);
  }
#else
  static void start_switch(void**, const void*, std::size_t) {}
  void arrive_in_scheduler() {}
  void arrive_in_fiber(void*) {}
#endif

  std::unique_ptr<SharedVariable> allocate_shared(std::size_t bytes, const Site& site) {
    shared_bytes_ += bytes;
    if (shared_bytes_ > kSharedLimit) {
      throw Error(text("a block uses ", shared_bytes_, " bytes of shared memory and has ",
                       kSharedLimit, ", at ", name(site)));
    }
    return std::make_unique<SharedVariable>(bytes);
  }

  static void count(SectorSet& sectors, std::uint64_t& requested, const void* pointer,
                    std::size_t bytes) {
    sectors.add(reinterpret_cast<std::uintptr_t>(pointer), bytes);
    requested += bytes;
  }

  void check_alignment(const void* pointer, std::size_t bytes, const char* what) const {
    if (bytes > 16 || reinterpret_cast<std::uintptr_t>(pointer) % bytes != 0) {
      throw Error(text("misaligned ", what, " of ", bytes, " bytes at ", pointer, " by thread ",
                       name(threadIdx), " of block ", name(blockIdx)));
    }
  }

  std::mutex mutex_;
  std::vector<Thread> threads_;
  std::vector<std::unique_ptr<Stack>> idle_;
  Context scheduler_;
  void* fake_stack_ = nullptr;
  const void* scheduler_bottom_ = nullptr;
  std::size_t scheduler_size_ = 0;
  unsigned current_ = 0;
  std::exception_ptr error_;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  std::map<Site, std::unique_ptr<SharedVariable>> shared_;
  std::unique_ptr<SharedVariable> dynamic_;
  std::size_t dynamic_bytes_ = 0, shared_bytes_ = 0;
  SectorSet loads_, stores_;
  Traffic traffic_;
};

inline Machine& machine() {
  static Machine instance;
  return instance;
}
inline void Machine::enter() { machine().run_fiber(); }

// Each parameter at the next multiple of its alignment.
template <class... Parameters>
std::vector<unsigned char> packed(const Parameters&... parameters) {
  std::vector<unsigned char> bytes;
  const auto append = [&](const auto& parameter) {
    using P = std::decay_t<decltype(parameter)>;
    static_assert(std::is_trivially_copyable_v<P>);
    bytes.resize((bytes.size() + alignof(P) - 1) / alignof(P) * alignof(P));
    const auto* first = reinterpret_cast<const unsigned char*>(&parameter);
    bytes.insert(bytes.end(), first, first + sizeof(P));
  };
  (append(parameters), ...);
  return bytes;
}

// kernel<<<grid, block, dynamic_bytes, stream>>>(arguments...)
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t dynamic_bytes,
            Arguments... arguments) {
  if (machine().observer != nullptr) {
    const auto bytes = packed<Parameters...>(Parameters(arguments)...);
    const LaunchRecord record{reinterpret_cast<const void*>(kernel),
                              {grid.x, grid.y, grid.z},
                              {block.x, block.y, block.z},
                              dynamic_bytes,
                              bytes.data(),
                              bytes.size()};
    if (machine().observer(&record)) return;
  }
  auto body = [&] { kernel(Parameters(arguments)...); };
  machine().run(grid, block, dynamic_bytes, body);
}

// ---- Warp collectives, each in terms of Machine::collective.

inline unsigned lane() {
  return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % kLanes;
}

template <class T>
T shuffle(unsigned mask, T value, int source, Site site) {
  struct Operand {
    T value;
    int source;
    Site site;
    T result;
  } mine{value, source, site, value};
  machine().collective(
      mask, &mine,
      [](void** operands, unsigned mask) {
        for (unsigned lane = 0; lane < kLanes; ++lane) {
          if (!(mask >> lane & 1)) continue;
          Operand& to = *static_cast<Operand*>(operands[lane]);
          if (!(mask >> to.source & 1)) {
            throw Error(text("lane ", lane, " shuffles from lane ", to.source, ", which the mask ",
                             std::hex, mask, " does not name, at ", name(to.site)));
          }
          to.result = static_cast<Operand*>(operands[to.source])->value;
        }
      },
      site);
  return mine.result;
}

inline void synchronise_warp(Site site, unsigned mask = ~0u) {
  machine().collective(mask, nullptr, nullptr, site);
}

inline unsigned ballot(unsigned mask, bool predicate, Site site) {
  struct Operand {
    bool predicate;
    unsigned result;
  } mine{predicate, 0};
  machine().collective(
      mask, &mine,
      [](void** operands, unsigned mask) {
        unsigned votes = 0;
        for (unsigned lane = 0; lane < kLanes; ++lane) {
          if (mask >> lane & 1) {
            votes |= unsigned(static_cast<Operand*>(operands[lane])->predicate) << lane;
          }
        }
        for (unsigned lane = 0; lane < kLanes; ++lane) {
          if (mask >> lane & 1) static_cast<Operand*>(operands[lane])->result = votes;
        }
      },
      site);
  return mine.result;
}

template <class T>
unsigned match(unsigned mask, T value, Site site) {
  struct Operand {
    T value;
    unsigned result;
  } mine{value, 0};
  machine().collective(
      mask, &mine,
      [](void** operands, unsigned mask) {
        for (unsigned lane = 0; lane < kLanes; ++lane) {
          for (unsigned other = 0; other < kLanes; ++other) {
            if (!(mask >> lane & 1) || !(mask >> other & 1)) continue;
            Operand& to = *static_cast<Operand*>(operands[lane]);
            const bool same = to.value == static_cast<Operand*>(operands[other])->value;
            to.result |= unsigned(same) << other;
          }
        }
      },
      site);
  return mine.result;
}

// c += a b on a warp: a is 16 x 8, b 8 x 8, c 16 x 8, spread over the lanes as mma.m16n8k8 has it.
// Of a and b tensor cores read the 19 bits that tf32 has.
inline float as_tf32(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits &= ~0x1fffu;
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}
inline void multiply_16x8x8(float (&c)[4], const float (&a)[4], const float (&b)[2], Site site) {
  struct Operand {
    float* c;
    const float* a;
    const float* b;
  } mine{c, a, b};
  machine().collective(
      ~0u, &mine,
      [](void** operands, unsigned) {
        const auto of = [&](int lane) { return *static_cast<Operand*>(operands[lane]); };
        for (int row = 0; row < 16; ++row) {
          for (int column = 0; column < 8; ++column) {
            float& sum = of(row % 8 * 4 + column / 2).c[row / 8 * 2 + column % 2];
            for (int k = 0; k < 8; ++k) {
              sum += as_tf32(of(row % 8 * 4 + k % 4).a[row / 8 + k / 4 * 2]) *
                     as_tf32(of(column * 4 + k % 4).b[k / 4]);
            }
          }
        }
      },
      site);
}

// The same of numbers of 16 bits, two in a word, as mma.m16n8k16 has it: a is 16 x 16, b 16 x 8.
// `number` makes a float of the bits.
template <class Number>
void multiply_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                      const Number& number, Site site) {
  struct Operand {
    float* c;
    float a[4][2], b[2][2];
  } mine{c, {}, {}};
  const auto halves = [&](std::uint32_t word, float (&two)[2]) {
    two[0] = number(std::uint16_t(word));
    two[1] = number(std::uint16_t(word >> 16));
  };
  for (int part = 0; part < 4; ++part) halves(a[part], mine.a[part]);
  for (int part = 0; part < 2; ++part) halves(b[part], mine.b[part]);
  machine().collective(
      ~0u, &mine,
      [](void** operands, unsigned) {
        const auto of = [&](int lane) -> Operand& {
          return *static_cast<Operand*>(operands[lane]);
        };
        for (int row = 0; row < 16; ++row) {
          for (int column = 0; column < 8; ++column) {
            float& sum = of(row % 8 * 4 + column / 2).c[row / 8 * 2 + column % 2];
            for (int k = 0; k < 16; ++k) {
              const int t = k % 8 / 2;
              sum += of(row % 8 * 4 + t).a[row / 8 + k / 8 * 2][k % 2] *
                     of(column * 4 + t).b[k / 8][k % 2];
            }
          }
        }
      },
      site);
}

// Four 8 x 8 matrices of 16-bit numbers in shared memory, as ldmatrix.x4 has it: `row` of lane
// 8 m + r is row r of matrix m, and lane 4 g + t gets two numbers of each, of row g the columns
// 2 t and 2 t + 1, or, transposed, of column g the rows 2 t and 2 t + 1.
inline void load_matrices(std::uint32_t (&words)[4], const void* row, bool transposed, Site site) {
  if (!machine().is_shared(row) || reinterpret_cast<std::uintptr_t>(row) % 16 != 0) {
    throw Error(text("a row of a matrix must be 16 aligned bytes of shared memory, got ", row,
                     " from thread ", name(threadIdx), " of block ", name(blockIdx), ", at ",
                     name(site)));
  }
  struct Operand {
    std::uint16_t row[8];
    std::uint32_t* words;
    bool transposed;
  } mine{{}, words, transposed};
  // Each lane reads its row itself, as far as races are concerned.
  for (int n = 0; n < 8; ++n) mine.row[n] = static_cast<const std::uint16_t*>(row)[n];
  machine().collective(
      ~0u, &mine,
      [](void** operands, unsigned) {
        const auto of = [&](int lane) -> Operand& {
          return *static_cast<Operand*>(operands[lane]);
        };
        for (int lane = 0; lane < int(kLanes); ++lane) {
          const int g = lane / 4, t = lane % 4;
          Operand& to = of(lane);
          for (int m = 0; m < 4; ++m) {
            const auto number = [&](int n) -> std::uint32_t {
              return to.transposed ? of(8 * m + n).row[g] : of(8 * m + g).row[n];
            };
            to.words[m] = number(2 * t) | number(2 * t + 1) << 16;
          }
        }
      },
      site);
}

}  // namespace emulator

// ---- What kernels call.

#define EMULATOR_SITE \
  ::emulator::Site { __FILE__, __LINE__ }
#define __syncthreads() ::emulator::machine().barrier(EMULATOR_SITE)
#define __syncwarp(...) ::emulator::synchronise_warp(EMULATOR_SITE __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(mask, value, source) \
  ::emulator::shuffle(mask, value, int(source) & 31, EMULATOR_SITE)
#define __shfl_xor_sync(mask, value, bits) \
  ::emulator::shuffle(mask, value, int(::emulator::lane()) ^ int(bits), EMULATOR_SITE)
#define __ballot_sync(mask, predicate) ::emulator::ballot(mask, predicate, EMULATOR_SITE)
#define __match_any_sync(mask, value) ::emulator::match(mask, value, EMULATOR_SITE)

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs(int(bits)); }

// Integers only: floating-point atomics would make results depend on the order of threads.
template <class T>
__attribute__((noinline, no_sanitize("thread"))) T atomicAdd(T* address, T value) {
  static_assert(std::is_integral_v<T>);
  emulator::machine().on_atomic(address, sizeof(T), __builtin_return_address(0));
  const T before = *address;
  *address = T(before + value);
  return before;
}

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }  // launches throw
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
inline cudaError_t cudaMemsetAsync(void* pointer, int value, std::size_t bytes, cudaStream_t) {
  std::memset(pointer, value, bytes);
  return cudaSuccess;
}
