// The end of a select: a warp knows the maxima of its row's groups and finds the k best scores.
//
// The k groups with the largest maxima (of equal ones the leftmost) hold the k best scores. For let t be the
// smallest of those k maxima. A score outside of them is at most t, and where it equals t its group lies to the
// right of all chosen ones whose maximum is t; so each of the k maxima beats it, by value or by column. Hence
// exactly k groups are read, also where thousands of scores are equal.
//
// Everything here is done by one warp: no barrier of the block, no atomics, a fixed order.
#pragma once

#include "rank.cuh"
#include "score_rows.cuh"

namespace saerl {

// What a warp holds of its row in shared memory.
struct RowPlace {
    unsigned* maxima;  // [groups] ranks
    int* chosen;       // [min(k, groups)] groups, ascending
    unsigned long long* keys;
    int places;  // for keys: a power of two, at least k + kWarpColumns
};

__device__ inline int lane_of_thread() {
    return threadIdx.x % 32;
}

__device__ inline int count_reaching(const unsigned* maxima, int groups, unsigned least) {
    int reaching = 0;
    for (int g = lane_of_thread(); g < groups; g += 32) reaching += maxima[g] >= least;
    return __reduce_add_sync(kAllLanes, reaching);
}

// A bound that at least k maxima reach, bit by bit from the top: the largest such, unless exactly k reach a
// shorter one.
__device__ inline unsigned reached_by(const unsigned* maxima, int groups, int k) {
    unsigned bound = 0;
    for (int bit = 31; bit >= 0; --bit) {
        const unsigned trial = bound | 1u << bit;
        const int reaching = count_reaching(maxima, groups, trial);
        if (reaching >= k) bound = trial;
        if (reaching == k) break;
    }
    return bound;
}

// The k groups with the largest maxima, in ascending order; returns their number, k or all groups.
__device__ inline int choose_groups(const RowPlace& place, int groups, int k, unsigned& bound) {
    bound = groups > k ? reached_by(place.maxima, groups, k) : 0;
    // of the groups that just reach the bound, the leftmost take what the higher ones leave
    int room = bound ? k - count_reaching(place.maxima, groups, bound + 1) : groups;
    const unsigned before = (1u << lane_of_thread()) - 1;
    int listed = 0;
    for (int base = 0; base < groups; base += 32) {
        const int g = base + lane_of_thread();
        const unsigned maximum = g < groups ? place.maxima[g] : 0;
        const bool level = g < groups && maximum == bound;
        const unsigned levels = __ballot_sync(kAllLanes, level);
        const bool chosen = g < groups && (maximum > bound || (level && __popc(levels & before) < room));
        const unsigned lanes = __ballot_sync(kAllLanes, chosen);
        if (chosen) place.chosen[listed + __popc(lanes & before)] = g;
        listed += __popc(lanes);
        room -= __popc(levels);
    }
    __syncwarp();
    return listed;
}

// Bitonic sort of keys[0, size), descending; size is a power of two. The places from `held` on are emptied.
__device__ inline void sort_keys(unsigned long long* keys, int held, int size) {
    for (int i = held + lane_of_thread(); i < size; i += 32) keys[i] = 0;
    __syncwarp();
    for (int run = 2; run <= size; run *= 2) {
        for (int apart = run / 2; apart > 0; apart /= 2) {
            for (int pair = lane_of_thread(); pair < size / 2; pair += 32) {
                const int low = 2 * apart * (pair / apart) + pair % apart;
                const unsigned long long a = keys[low], b = keys[low + apart];
                const bool descending = (low & run) == 0;
                if ((a < b) == descending) {
                    keys[low] = b;
                    keys[low + apart] = a;
                }
            }
            __syncwarp();
        }
    }
}

// Every score of the chosen groups that reaches the bound becomes a key. Returns their number. When they
// outgrow their place they are cut back to the best k, which raises the bound: nothing is lost.
__device__ inline int collect(const ScoreRows& rows, int64_t row, int group_bits, int listed, unsigned bound,
                              int k, const RowPlace& place) {
    constexpr int kAhead = 4;  // loads under way at once in each lane
    const unsigned before = (1u << lane_of_thread()) - 1;
    const int64_t elements = static_cast<int64_t>(listed) << group_bits;
    int held = 0;
    for (int64_t base = 0; base < elements; base += kAhead * kWarpColumns) {
        int64_t columns[kAhead];
        float4 scores[kAhead];
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
            const int64_t element = base + a * kWarpColumns + 4 * lane_of_thread();
            const int64_t within = element & ((int64_t{1} << group_bits) - 1);
            columns[a] =
                element < elements
                    ? (static_cast<int64_t>(place.chosen[element >> group_bits]) << group_bits) + within
                    : rows.width;
            if (columns[a] < rows.width) scores[a] = rows.at(row, columns[a]);
        }
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
            if (held > place.places - kWarpColumns) {
                __syncwarp();
                sort_keys(place.keys, held, place.places);
                held = k;
                // later scores lie further right and lose a tie, so they have to be above the k-th
                bound = rank_in(place.keys[k - 1]) + 1;
                __syncwarp();
            }
            const float four[4] = {scores[a].x, scores[a].y, scores[a].z, scores[a].w};
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const unsigned rank = columns[a] + c < rows.width ? rank_of(four[c]) : 0;
                const bool reaches = rank != 0 && rank >= bound;
                const unsigned lanes = __ballot_sync(kAllLanes, reaches);
                if (reaches) place.keys[held + __popc(lanes & before)] = key_of(rank, columns[a] + c);
                held += __popc(lanes);
            }
        }
    }
    __syncwarp();
    return held;
}

__device__ inline void write_spoilt(int k, float* values, int32_t* columns) {
    for (int place = lane_of_thread(); place < k; place += 32) {
        values[place] = __uint_as_float(0x7FC00000u);
        columns[place] = place;
    }
}

// values, columns [k] = the k best of the row whose group maxima lie in its place.
__device__ inline void finish_row(const ScoreRows& rows, int64_t row, int group_bits, int groups, int k,
                                  bool relu, const RowPlace& place, float* values, int32_t* columns) {
    unsigned largest = 0;
    for (int g = lane_of_thread(); g < groups; g += 32) largest = max(largest, place.maxima[g]);
    if (__reduce_max_sync(kAllLanes, largest) == kSpoilt) return write_spoilt(k, values, columns);
    unsigned bound;
    const int listed = choose_groups(place, groups, k, bound);
    const int held = collect(rows, row, group_bits, listed, bound, k, place);
    int size = 2;
    while (size < held) size *= 2;
    sort_keys(place.keys, held, size);
    for (int i = lane_of_thread(); i < k; i += 32) {
        const float value = value_of(rank_in(place.keys[i]));
        values[i] = relu && !(value > 0) ? 0.0f : value;
        columns[i] = column_in(place.keys[i]);
    }
}

}  // namespace saerl
