// csrc/cpu/spare_memory.cpp alone: what it hands out, to whom, and what it keeps. Linked with malloc and free
// wrapped, so that it is known whether memory was kept or given back.
//
//     check sizes | threads | forks | touch_what_was_given_back
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "spare_memory.h"

namespace {

std::atomic<int64_t> made{0}, freed{0};  // blocks of kCounted bytes or more
constexpr size_t kCounted = saerl::kLeastKept / 2;
thread_local bool counting = false;

}  // namespace

extern "C" {
void* __real_malloc(size_t bytes);
void __real_free(void* data);

void* __wrap_malloc(size_t bytes) {
    if (counting && bytes >= kCounted) ++made;
    return __real_malloc(bytes);
}

void __wrap_free(void* data) {
    if (counting && data) ++freed;
    __real_free(data);
}
}

namespace {

using saerl::give_memory;
using saerl::kLeastKept;
using saerl::kMostKept;
using saerl::Memory;
using saerl::take_memory;

constexpr size_t kMega = size_t{1} << 20;

int failures = 0;

void want(bool holds, const char* what) {
    if (holds) return;
    std::printf("not so: %s\n", what);
    ++failures;
}

// Both places empty: blocks too small for a place push nothing out, so two are taken and freed here.
void forget() {
    const int64_t before = made;
    std::vector<Memory> taken;
    // a kept block is handed out for a quarter of its size, so these sizes between them reach every block
    for (size_t bytes = kLeastKept / 4; bytes <= kMostKept; bytes *= 2) {
        for (int place = 0; place < 2; ++place) taken.push_back(take_memory(bytes));
    }
    want(made > before, "something had to be made");
    for (const Memory& memory : taken) __real_free(memory.data);
}

// Whether memory of `bytes` is kept when it is given back, and `wanted` bytes are then taken from it.
bool serves(size_t bytes, size_t wanted) {
    forget();
    const Memory given = take_memory(bytes);
    give_memory(given);
    const int64_t before = made;
    const Memory taken = take_memory(wanted);
    const bool kept = made == before;
    want(!kept || (taken.data == given.data && taken.bytes == given.bytes), "kept memory keeps its size");
    want(taken.bytes >= wanted, "memory is as large as asked for");
    __real_free(taken.data);
    return kept;
}

void sizes() {
    want(serves(8 * kMega, 8 * kMega), "memory is kept for the next array of its size");
    want(serves(8 * kMega, 2 * kMega), "and for one of a quarter of its size");
    want(!serves(8 * kMega, 2 * kMega - 1), "not for a smaller one");
    want(!serves(8 * kMega, 8 * kMega + 1), "and never for a larger one");
    want(serves(kLeastKept, kLeastKept), "the smallest that is kept");
    want(!serves(kLeastKept - 1, kLeastKept - 1), "less is given back");
    want(serves(kMostKept, kMostKept), "the largest that is kept");
    want(!serves(kMostKept + 1, kMostKept + 1), "more is given back");

    forget();
    std::vector<Memory> given;
    for (size_t size : {3, 5, 4}) given.push_back(take_memory(size * kMega));
    int64_t before = freed;
    for (const Memory& memory : given) give_memory(memory);
    want(freed == before + 1, "two blocks are kept, the third is given back");
    before = made;
    const Memory first = take_memory(4 * kMega), second = take_memory(4 * kMega);
    want(made == before, "the two larger ones are kept");
    want(first.data != second.data, "nobody gets what another has");
    const Memory third = take_memory(4 * kMega);
    want(made == before + 1, "with both in use a third is made");
    want(third.data != first.data && third.data != second.data, "nobody gets what two others have");
    for (const Memory& memory : {first, second, third}) give_memory(memory);
}

// Takes and gives back; what was written while it was taken must be there still.
void use(uint64_t owner, int64_t rounds) {
    counting = true;
    uint64_t state = owner * 0x9E3779B97F4A7C15u;
    for (int64_t round = 0; round < rounds; ++round) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const size_t bytes = kMega / 2 + (state >> 33) % (4 * kMega);
        const Memory memory = take_memory(bytes);
        auto* numbers = static_cast<uint64_t*>(memory.data);
        const size_t step = bytes / sizeof(uint64_t) / 7;
        for (size_t place = 0; place < 7; ++place) numbers[place * step] = owner;
        std::this_thread::yield();
        bool whole = memory.bytes >= bytes;
        for (size_t place = 0; place < 7; ++place) whole &= numbers[place * step] == owner;
        if (!whole) {
            std::printf("not so: memory in use is its owner's alone\n");
            std::_Exit(1);
        }
        give_memory(memory);
    }
}

void threads() {
    const int64_t before = made - freed;
    std::vector<std::thread> all;
    for (uint64_t owner = 1; owner <= 4; ++owner) all.emplace_back(use, owner, 1500);
    for (std::thread& thread : all) thread.join();
    const int64_t kept = made - freed - before;
    want(0 <= kept && kept <= 2, "two blocks are kept at most, whoever gave them");
}

// A child may be forked at any moment of another thread's call: it never waits for it.
void forks() {
    std::atomic<bool> going{true};
    std::thread other([&] {
        while (going) use(1, 10);
    });
    for (int child = 0; child < 40; ++child) {
        const pid_t id = fork();
        if (id == 0) {
            alarm(20);
            use(2, 10);
            std::_Exit(0);
        }
        int status = 0;
        waitpid(id, &status, 0);
        want(status == 0, "a forked child goes on");
    }
    going = false;
    other.join();
}

// For AddressSanitizer, which has to end it here.
void touch_what_was_given_back() {
    const Memory memory = take_memory(2 * kMega);
    give_memory(memory);
    static_cast<volatile char*>(memory.data)[kMega] = 1;
}

}  // namespace

int main(int count, char** arguments) {
    counting = true;
    const char* name = count == 2 ? arguments[1] : "";
    if (!std::strcmp(name, "sizes")) {
        sizes();
    } else if (!std::strcmp(name, "threads")) {
        threads();
    } else if (!std::strcmp(name, "forks")) {
        forks();
    } else if (!std::strcmp(name, "touch_what_was_given_back")) {
        touch_what_was_given_back();
    } else {
        want(false, "a check has this name");
    }
    if (!failures) std::printf("all so\n");
    return failures != 0;
}
