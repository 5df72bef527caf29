// Finds data races: two threads access the same memory, at least one of them to change it, and
// nothing orders the two accesses.
//
// GCC and Clang call a function of ours before every access of code compiled with
// -fsanitize=thread; ThreadSanitizer's library is not linked, as it knows nothing of blocks and
// warps. What orders memory is CUDA's: __syncthreads the block, __syncwarp the lanes of its mask;
// shuffles and votes nothing; blocks of a launch never wait for each other; launches do. This
// file itself is compiled without the option.
#include <dlfcn.h>

#include <array>
#include <cstdio>
#include <unordered_map>

#include "emulator.h"

namespace emulator::races {
namespace {

// One access by a thread to some bytes of a 4-byte word.
struct Event {
  uint3 block;
  unsigned thread;
  unsigned barriers;  // that its block had passed
  unsigned clock;     // __syncwarps that the thread had passed
  Access kind;
  unsigned bytes;    // one bit each
  const void* code;  // where in the program
};

// Per warp: what each lane knows to have happened. clocks[a][b]: lane a waited for that clock of b.
using Clocks = std::array<std::array<unsigned, kLanes>, kLanes>;

struct Detector {
  bool watching = false;
  const char *stack = nullptr, *stack_end = nullptr;  // the running thread's own memory
  unsigned thread = 0, barriers = 0;
  uint3 grid, size, block;
  std::vector<Clocks> warps;
  std::unordered_map<std::uintptr_t, std::vector<Event>> words;
  std::string found;

  // Whether everything that races with `earlier` races with `later` as well.
  static bool outdoes(Access later, Access earlier) {
    return later == earlier || later == Access::write;
  }
  static bool conflict(Access a, Access b) {
    return a == Access::write || b == Access::write || a != b;
  }
  bool is_here(const uint3& other) const {
    return other.x == block.x && other.y == block.y && other.z == block.z;
  }
  bool happened_before(const Event& event) const {
    if (!is_here(event.block)) return false;
    if (event.thread == thread || event.barriers != barriers) return true;
    if (event.thread / kLanes != thread / kLanes) return false;
    return warps[thread / kLanes][thread % kLanes][event.thread % kLanes] >= event.clock;
  }

  void record(std::uintptr_t word, unsigned bytes, Access kind, const void* code) {
    const unsigned clock = warps[thread / kLanes][thread % kLanes][thread % kLanes];
    const Event now{block, thread, barriers, clock, kind, bytes, code};
    std::vector<Event>& events = words[word];
    std::size_t kept = 0;
    const Event* reader = nullptr;  // of these bytes, since the last barrier
    bool read_by_two_warps = false;
    for (const Event& event : events) {
      const bool before = happened_before(event);
      if (!before && (event.bytes & bytes) && conflict(event.kind, kind) && found.empty()) {
        found = describe(word * 4, event, now);
      }
      const bool covered = before && outdoes(kind, event.kind) && !(event.bytes & ~bytes);
      if (covered) continue;
      events[kept] = event;
      if (event.kind == Access::read && is_here(event.block) && event.barriers == barriers &&
          !(bytes & ~event.bytes)) {
        read_by_two_warps |= reader && reader->thread / kLanes != event.thread / kLanes;
        reader = &events[kept];
      }
      ++kept;
    }
    events.resize(kept);
    // Whoever may write after two warps have read may write after a third has.
    if (kind != Access::read || !read_by_two_warps) events.push_back(now);
  }

  std::string describe(std::uintptr_t address, const Event& first, const Event& second) const {
    const bool shared = machine().is_shared(reinterpret_cast<const void*>(address));
    return text("data race in ", shared ? "shared" : "global", " memory:\n  ", side(first), "\n  ",
                side(second));
  }
  std::string side(const Event& event) const {
    const char* verbs[] = {"reads", "writes", "adds atomically"};
    const uint3 index{event.thread % size.x, event.thread / size.x % size.y,
                      event.thread / size.x / size.y};
    return text("thread ", name(index), " of block ", name(event.block), " ",
                verbs[unsigned(event.kind)], " at ", place(event.code));
  }
  // The source lines, from the innermost inlined function outwards.
  static std::string place(const void* code) {
    Dl_info info;
    if (dladdr(code, &info) == 0) return text(code);
    const auto offset = reinterpret_cast<std::uintptr_t>(code) - 1 -
                        reinterpret_cast<std::uintptr_t>(info.dli_fbase);
    const std::string command = text("addr2line -sie '", info.dli_fname, "' 0x", std::hex, offset);
    std::string lines;
    if (FILE* pipe = popen(command.c_str(), "r")) {
      char line[256];
      while (std::fgets(line, sizeof line, pipe) != nullptr) {
        line[std::strcspn(line, " \n")] = 0;  // a remark may follow the place
        lines += text(lines.empty() ? "" : ", in ", line);
      }
      pclose(pipe);
    }
    return lines.empty() ? text(info.dli_fname, "+0x", std::hex, offset) : lines;
  }
};

Detector detector;

}  // namespace

void begin_launch(const uint3& grid, const uint3& size) {
  detector.words.clear();
  detector.found.clear();
  detector.grid = grid;
  detector.size = size;
}

void begin_block(const uint3& index) {
  detector.block = index;
  detector.barriers = 0;
  const unsigned threads = detector.size.x * detector.size.y * detector.size.z;
  detector.warps.assign((threads + kLanes - 1) / kLanes, Clocks{});
  for (Clocks& clocks : detector.warps) {
    for (unsigned lane = 0; lane < kLanes; ++lane) clocks[lane][lane] = 1;
  }
}

void enter(unsigned thread, const char* stack, std::size_t bytes) {
  detector.thread = thread;
  detector.stack = stack;
  detector.stack_end = stack + bytes;
  detector.watching = true;
}

void leave() { detector.watching = false; }
void pause(bool on) { detector.watching = !on; }
void synchronise_block() { ++detector.barriers; }

void synchronise_warp(unsigned first, unsigned mask) {
  Clocks& clocks = detector.warps[first / kLanes];
  std::array<unsigned, kLanes> known{};
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    for (unsigned other = 0; other < kLanes; ++other) {
      known[other] = std::max(known[other], clocks[lane][other]);
    }
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    clocks[lane] = known;
    ++clocks[lane][lane];
  }
}

void forget(const void* memory, std::size_t bytes) {
  const auto first = reinterpret_cast<std::uintptr_t>(memory);
  for (auto word = first / 4; word <= (first + bytes) / 4; ++word) detector.words.erase(word);
}

void access(const void* address, std::size_t bytes, Access kind, const void* code) {
  if (!detector.watching || (detector.stack <= address && address < detector.stack_end)) return;
  const auto first = reinterpret_cast<std::uintptr_t>(address), end = first + bytes;
  for (auto word = first / 4; word * 4 < end; ++word) {
    unsigned touched = 0;
    for (unsigned byte = 0; byte < 4; ++byte) {
      touched |= unsigned(word * 4 + byte >= first && word * 4 + byte < end) << byte;
    }
    detector.record(word, touched, kind, code);
  }
}

std::string take() { return std::exchange(detector.found, {}); }

}  // namespace emulator::races

// ---- What the compiler calls.

using emulator::Access;

#define HOOK extern "C" __attribute__((visibility("hidden")))
#define ON_ACCESS(function, bytes, kind)                                                \
  HOOK void __tsan_##function(void* address) {                                          \
    emulator::races::access(address, bytes, Access::kind, __builtin_return_address(0)); \
  }
#define ON_BOTH(bytes)                \
  ON_ACCESS(read##bytes, bytes, read) \
  ON_ACCESS(write##bytes, bytes, write)
#define ON_UNALIGNED(bytes)                     \
  ON_ACCESS(unaligned_read##bytes, bytes, read) \
  ON_ACCESS(unaligned_write##bytes, bytes, write)

ON_BOTH(1)
ON_BOTH(2)
ON_BOTH(4)
ON_BOTH(8)
ON_BOTH(16)
ON_UNALIGNED(2)
ON_UNALIGNED(4)
ON_UNALIGNED(8)
ON_UNALIGNED(16)

HOOK void __tsan_read_range(void* address, unsigned long bytes) {
  emulator::races::access(address, bytes, Access::read, __builtin_return_address(0));
}
HOOK void __tsan_write_range(void* address, unsigned long bytes) {
  emulator::races::access(address, bytes, Access::write, __builtin_return_address(0));
}

// Host code: nothing to look for, but it must work.
HOOK void __tsan_init() {}
HOOK void __tsan_func_entry(void*) {}
HOOK void __tsan_func_exit() {}
HOOK void __tsan_vptr_read(void**) {}
HOOK void __tsan_vptr_update(void**, void*) {}
HOOK char __tsan_atomic8_load(const volatile char* address, int) {
  return __atomic_load_n(address, __ATOMIC_SEQ_CST);
}
HOOK int __tsan_atomic32_fetch_add(volatile int* address, int value, int) {
  return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);
}
