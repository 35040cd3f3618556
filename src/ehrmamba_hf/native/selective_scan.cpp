// The selective scan of Mamba (https://arxiv.org/abs/2312.00752, section 3.2 and algorithm 2) on a
// CPU, one vector of channels at a time:
//
//   h[t] = (resets[t] ? 0 : exp(delta[t] * A) * h[t-1]) + delta[t] * x[t] * B[t]
//   y[t] = sum over n of C[t] * h[t]  +  D * x[t]
//
// Numbers are float32 and arrays contiguous, with the channels last wherever there are channels:
//   x, delta, y    (batch, length, channels); delta at least 0
//   A              (states, channels); negative
//   B, C           (batch, length, states)
//   D              (channels)
//   resets         (batch, length) bytes, or null for none
//   states         (batch, states, channels)
//   starts         (chunks, batch, states, channels), the states at the start of each chunk
//
// `step` alone takes states and A as the caller's cache holds them, with the states last.
//
// Nothing of C++'s own library is used: ziglang would take minutes to build one.

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int64_t kWidth = 16;
#elif defined(__AVX2__)
constexpr int64_t kWidth = 8;
#else
constexpr int64_t kWidth = 4;
#endif
constexpr int64_t kMaxStates = 256;
constexpr int64_t kMaxThreads = 256;

typedef float Vector __attribute__((vector_size(4 * kWidth)));
typedef int32_t Integers __attribute__((vector_size(4 * kWidth)));

inline int64_t least(int64_t one, int64_t other) { return one < other ? one : other; }

inline void clear(Vector* vectors, int64_t count) {
  for (int64_t i = 0; i < count; ++i) vectors[i] = Vector{};
}

inline Vector load(const float* from, int64_t lanes) {
  Vector vector = {};
  if (lanes >= kWidth)
    memcpy(&vector, from, sizeof(Vector));
  else
    memcpy(&vector, from, 4 * lanes);
  return vector;
}

inline void store(float* to, Vector vector, int64_t lanes) {
  if (lanes >= kWidth)
    memcpy(to, &vector, sizeof(Vector));
  else
    memcpy(to, &vector, 4 * lanes);
}

inline float sum(Vector vector) {
  float total = 0;
  for (int64_t lane = 0; lane < kWidth; ++lane) total += vector[lane];
  return total;
}

constexpr float kLog2e = 1.44269504088896341f;
// Added to a number, it leaves the nearest integer in the low bits of the sum.
constexpr float kRound = 12582912.0f;
constexpr float kZeroBelow = kRound - 125.0f;
constexpr float kZeroAlways = 3e38f;

// 2^(rate * step) for exponents of at most 0: relative error 1e-7, 1 at 0, 0 below -125, and 0
// everywhere if `zero_below` is kZeroAlways. The whole part of the exponent goes to the float's own
// exponent; the rest, in [-1/2, 1/2], to a minimax polynomial with a constant term of 1 (2e-9).
inline Vector exp2(Vector rate, Vector step, float zero_below) {
  const Vector rounded = rate * step + kRound;
  const Vector rest = rate * step - (rounded - kRound);
  Vector power = rest * 1.535336196e-4f + 1.339887385e-3f;
  power = power * rest + 9.618436918e-3f;
  power = power * rest + 5.550332367e-2f;
  power = power * rest + 2.402264774e-1f;
  power = power * rest + 6.931471825e-1f;
  power = power * rest + 1.0f;
  const Integers scaled = (Integers)power + ((Integers)rounded << 23);
  return (Vector)(scaled & ~(Integers)(rounded < zero_below));
}

// Numbers below 1e-38, to which gradients decay over a long sequence, cost some CPUs a hundred
// times as much as others: they are zero while one of these lives.
class FlushTinyToZero {
#if defined(__SSE2__)
 public:
  FlushTinyToZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushTinyToZero() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

struct Sizes {
  int64_t batch, length, channels, states, chunk, threads;
};

struct Inputs {
  const float *x, *delta, *A, *B, *C, *D;
  const uint8_t* resets;
};

// What one thread does of one row: units [first, last), each a vector of channels.
struct Piece {
  int64_t thread, row, first, last;
};

// Calls work(piece) for what falls to `thread` if all rows' units are shared out equally.
template <typename Work>
void each_piece(const Sizes& s, int64_t units, int64_t thread, const Work& work) {
  const int64_t end = s.batch * units * (thread + 1) / s.threads;
  for (int64_t item = s.batch * units * thread / s.threads; item < end;) {
    const int64_t row = item / units, last = least(units, end - row * units);
    work(Piece{thread, row, item - row * units, last});
    item = row * units + last;
  }
}

// Calls work(thread) for each thread, the first one's in this thread.
template <typename Work>
void run(int64_t threads, const Work& work) {
  struct Job {
    const Work* work;
    int64_t thread;
    pthread_t handle;
    bool started;
  } jobs[kMaxThreads];
  const auto one = [](void* job) -> void* {
    const FlushTinyToZero flush;
    (*static_cast<Job*>(job)->work)(static_cast<Job*>(job)->thread);
    return nullptr;
  };
  for (int64_t thread = threads - 1; thread >= 0; --thread) {
    Job& job = jobs[thread];
    job = {&work, thread, {}, false};
    job.started = thread && pthread_create(&job.handle, nullptr, one, &job) == 0;
    // Its own share, and those for which there is no thread to be had.
    if (!job.started) one(&job);
  }
  for (int64_t thread = 0; thread < threads; ++thread)
    if (jobs[thread].started) pthread_join(jobs[thread].handle, nullptr);
}

// Zeros, at the start of a cache line; `data` is null if there is not enough memory.
template <typename Number>
struct Zeros {
  explicit Zeros(int64_t count) : memory_(calloc(count * sizeof(Number) + kLine, 1)) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_);
    data = memory_ ? reinterpret_cast<Number*>((address + kLine - 1) / kLine * kLine) : nullptr;
  }
  ~Zeros() { free(memory_); }
  Zeros(const Zeros&) = delete;

  Number* data;

 private:
  static constexpr uintptr_t kLine = 64;
  void* memory_;
};

// Positions [begin, end) of one row, and one vector's channels.
struct Tile {
  int64_t row, begin, end, channel, lanes;
};

void forward_tile(const Sizes& s, const Inputs& in, const Tile& tile, float* y, float* state) {
  Vector rate[kMaxStates], h[kMaxStates];
  for (int64_t n = 0; n < s.states; ++n) {
    rate[n] = load(in.A + n * s.channels + tile.channel, tile.lanes) * kLog2e;
    h[n] = load(state + n * s.channels + tile.channel, tile.lanes);
  }
  const Vector skip = load(in.D + tile.channel, tile.lanes);
  for (int64_t t = tile.begin; t < tile.end; ++t) {
    const int64_t position = tile.row * s.length + t;
    const int64_t here = position * s.channels + tile.channel;
    const float *B = in.B + position * s.states, *C = in.C + position * s.states;
    const Vector x = load(in.x + here, tile.lanes), step = load(in.delta + here, tile.lanes);
    const Vector input = x * step;
    Vector output = x * skip;
    if (in.resets && in.resets[position]) clear(h, s.states);
    for (int64_t n = 0; n < s.states; ++n) {
      h[n] = exp2(rate[n], step, kZeroBelow) * h[n] + input * B[n];
      output += h[n] * C[n];
    }
    store(y + here, output, tile.lanes);
  }
  for (int64_t n = 0; n < s.states; ++n)
    store(state + n * s.channels + tile.channel, h[n], tile.lanes);
}

// Where a thread puts gradients. `x`, `delta` and `state` are like what they are gradients of;
// the others are sums, `A` and `D` over this thread's rows and positions, `B` and `C` over its
// channels of one chunk, (chunk, states), lane by lane. `decay` and `history` are room for the
// tile at hand, (chunk, states).
struct Gradients {
  float *x, *delta, *state, *A, *D;
  Vector *B, *C, *decay, *history;
};

// The chunk's decays and states once more, from the states before it.
void rebuild_tile(const Sizes& s, const Inputs& in, const Tile& tile, const float* start,
                  const Gradients& grad) {
  Vector rate[kMaxStates], h[kMaxStates];
  for (int64_t n = 0; n < s.states; ++n) {
    rate[n] = load(in.A + n * s.channels + tile.channel, tile.lanes) * kLog2e;
    h[n] = load(start + n * s.channels + tile.channel, tile.lanes);
  }
  for (int64_t t = tile.begin; t < tile.end; ++t) {
    const int64_t position = tile.row * s.length + t;
    const int64_t here = position * s.channels + tile.channel;
    const float* B = in.B + position * s.states;
    const Vector step = load(in.delta + here, tile.lanes);
    const Vector input = load(in.x + here, tile.lanes) * step;
    Vector* decay = grad.decay + (t - tile.begin) * s.states;
    Vector* history = grad.history + (t - tile.begin) * s.states;
    const bool reset = in.resets && in.resets[position];
    const float zero_below = reset ? kZeroAlways : kZeroBelow;
    if (reset) clear(h, s.states);
    for (int64_t n = 0; n < s.states; ++n) {
      decay[n] = exp2(rate[n], step, zero_below);
      history[n] = h[n] = decay[n] * h[n] + input * B[n];
    }
  }
}

void backward_tile(const Sizes& s, const Inputs& in, const Tile& tile, const float* grad_y,
                   const float* start, const Gradients& grad) {
  rebuild_tile(s, in, tile, start, grad);
  Vector rate[kMaxStates], first[kMaxStates], carried[kMaxStates], grad_rate[kMaxStates];
  for (int64_t n = 0; n < s.states; ++n) {
    const int64_t here = n * s.channels + tile.channel;
    rate[n] = load(in.A + here, tile.lanes);
    first[n] = load(start + here, tile.lanes);
    carried[n] = load(grad.state + here, tile.lanes);
    grad_rate[n] = Vector{};
  }
  const Vector skip = load(in.D + tile.channel, tile.lanes);
  Vector grad_skip = {};
  for (int64_t t = tile.end - 1; t >= tile.begin; --t) {
    const int64_t position = tile.row * s.length + t, offset = (t - tile.begin) * s.states;
    const int64_t here = position * s.channels + tile.channel;
    const float *B = in.B + position * s.states, *C = in.C + position * s.states;
    const Vector x = load(in.x + here, tile.lanes), step = load(in.delta + here, tile.lanes);
    const Vector input = x * step, grad_output = load(grad_y + here, tile.lanes);
    const Vector *decay = grad.decay + offset, *history = grad.history + offset;
    const Vector* before = t > tile.begin ? history - s.states : first;
    Vector *grad_B = grad.B + offset, *grad_C = grad.C + offset;
    Vector grad_input = {}, grad_step = {};
    for (int64_t n = 0; n < s.states; ++n) {
      const Vector grad_h = grad_output * C[n] + carried[n];
      grad_C[n] += grad_output * history[n];
      grad_B[n] += grad_h * input;
      grad_input += grad_h * B[n];
      carried[n] = grad_h * decay[n];
      // What reaches the exponent delta * A.
      const Vector grad_exponent = carried[n] * before[n];
      grad_step += grad_exponent * rate[n];
      grad_rate[n] += grad_exponent * step;
    }
    store(grad.x + here, grad_input * step + grad_output * skip, tile.lanes);
    store(grad.delta + here, grad_step + grad_input * x, tile.lanes);
    grad_skip += grad_output * x;
  }
  for (int64_t n = 0; n < s.states; ++n) {
    const int64_t here = n * s.channels + tile.channel;
    store(grad.state + here, carried[n], tile.lanes);
    store(grad.A + here, load(grad.A + here, tile.lanes) + grad_rate[n], tile.lanes);
  }
  store(grad.D + tile.channel, load(grad.D + tile.channel, tile.lanes) + grad_skip, tile.lanes);
}

// A piece's chunk, one tile after the other, before the next chunk: tiles lie beside each other.
template <typename Work>
void each_tile(const Sizes& s, const Piece& piece, int64_t begin, const Work& work) {
  const int64_t end = least(begin + s.chunk, s.length);
  for (int64_t unit = piece.first; unit < piece.last; ++unit)
    work(Tile{piece.row, begin, end, unit * kWidth, s.channels - unit * kWidth});
}

void forward(const Sizes& s, const Inputs& in, float* y, float* state, float* starts) {
  const int64_t units = (s.channels + kWidth - 1) / kWidth, plane = s.states * s.channels;
  const auto work = [&](const Piece& piece) {
    float* row_state = state + piece.row * plane;
    const int64_t left = piece.first * kWidth;
    const int64_t width = least(piece.last * kWidth, s.channels) - left;
    for (int64_t begin = 0; begin < s.length; begin += s.chunk) {
      if (starts) {
        float* start = starts + (begin / s.chunk * s.batch + piece.row) * plane;
        for (int64_t n = 0; n < s.states; ++n)
          memcpy(start + n * s.channels + left, row_state + n * s.channels + left, 4 * width);
      }
      each_tile(s, piece, begin,
                [&](const Tile& tile) { forward_tile(s, in, tile, y, row_state); });
    }
  };
  run(s.threads, [&](int64_t thread) { each_piece(s, units, thread, work); });
}

// `grad_B` and `grad_C` take this piece's share alone, (length, states).
void backward_piece(const Sizes& s, const Inputs& in, const Piece& piece, const float* grad_y,
                    const float* starts, const Gradients& grad, float* grad_B, float* grad_C) {
  const int64_t room = s.chunk * s.states;
  for (int64_t chunk = (s.length + s.chunk - 1) / s.chunk - 1; chunk >= 0; --chunk) {
    const int64_t begin = chunk * s.chunk, first = begin * s.states;
    const float* start = starts + (chunk * s.batch + piece.row) * s.states * s.channels;
    clear(grad.B, room);
    clear(grad.C, room);
    each_tile(s, piece, begin,
              [&](const Tile& tile) { backward_tile(s, in, tile, grad_y, start, grad); });
    for (int64_t i = 0; i < least(room, s.length * s.states - first); ++i) {
      grad_B[first + i] = sum(grad.B[i]);
      grad_C[first + i] = sum(grad.C[i]);
    }
  }
}

// False if there is not enough memory.
bool backward(const Sizes& s, const Inputs& in, const float* grad_y, const float* starts,
              const Gradients& whole, float* grad_B, float* grad_C) {
  const int64_t units = (s.channels + kWidth - 1) / kWidth, plane = s.states * s.channels;
  const int64_t room = s.chunk * s.states, row_size = s.length * s.states;
  const Zeros<float> of_threads(s.threads * (plane + s.channels));
  // No two pieces have the same sum of thread and row.
  const Zeros<float> of_pieces((s.batch + s.threads) * 2 * row_size);
  const Zeros<Vector> rooms(s.threads * 4 * room);
  if (!of_threads.data || !of_pieces.data || !rooms.data) return false;
  const auto of_piece = [&](const Piece& piece) {
    return of_pieces.data + (piece.thread + piece.row) * 2 * row_size;
  };

  const auto work = [&](const Piece& piece) {
    float* sums = of_threads.data + piece.thread * (plane + s.channels);
    Vector* own = rooms.data + piece.thread * 4 * room;
    const Gradients grad = {whole.x,    whole.delta,    whole.state + piece.row * plane,
                            sums,       sums + plane,   own,
                            own + room, own + 2 * room, own + 3 * room};
    backward_piece(s, in, piece, grad_y, starts, grad, of_piece(piece), of_piece(piece) + row_size);
  };
  run(s.threads, [&](int64_t thread) { each_piece(s, units, thread, work); });

  const auto add = [&](const Piece& piece) {
    const float* own = of_piece(piece);
    for (int64_t i = 0; i < row_size; ++i) {
      grad_B[piece.row * row_size + i] += own[i];
      grad_C[piece.row * row_size + i] += own[row_size + i];
    }
  };
  for (int64_t thread = 0; thread < s.threads; ++thread) {
    each_piece(s, units, thread, add);
    const float* sums = of_threads.data + thread * (plane + s.channels);
    for (int64_t i = 0; i < plane; ++i) whole.A[i] += sums[i];
    for (int64_t i = 0; i < s.channels; ++i) whole.D[i] += sums[plane + i];
  }
  return true;
}

// One position more: the states of a channel lie beside each other, and are the vectors here.
void step(const Sizes& s, const Inputs& in, float* y, float* state) {
  const auto work = [&](const Piece& piece) {
    const float *B = in.B + piece.row * s.states, *C = in.C + piece.row * s.states;
    for (int64_t channel = piece.first; channel < piece.last; ++channel) {
      const int64_t here = piece.row * s.channels + channel;
      const float *rate = in.A + channel * s.states, x = in.x[here], delta = in.delta[here];
      float* h = state + here * s.states;
      Vector output = {};
      for (int64_t n = 0; n < s.states; n += kWidth) {
        const int64_t lanes = s.states - n;
        const Vector decay = exp2(load(rate + n, lanes), Vector{} + delta * kLog2e, kZeroBelow);
        const Vector next = decay * load(h + n, lanes) + load(B + n, lanes) * (delta * x);
        store(h + n, next, lanes);
        output += next * load(C + n, lanes);
      }
      y[here] = sum(output) + in.D[channel] * x;
    }
  };
  run(s.threads, [&](int64_t thread) { each_piece(s, s.channels, thread, work); });
}

}  // namespace

// At most 256 states and 256 threads.
extern "C" {

// `state` is the initial state, and becomes the final one; `starts` is null if none are kept.
int ehrmamba_scan_forward(int64_t batch, int64_t length, int64_t channels, int64_t states,
                          int64_t chunk, int64_t threads, const float* x, const float* delta,
                          const float* A, const float* B, const float* C, const float* D,
                          const uint8_t* resets, float* y, float* state, float* starts) {
  forward({batch, length, channels, states, chunk, threads}, {x, delta, A, B, C, D, resets}, y,
          state, starts);
  return 0;
}

// `grad_state` is the gradient of the final state, and becomes that of the initial one. The
// gradients of A, B, C and D are added to what is there. Returns 1 if there is not enough memory.
int ehrmamba_scan_backward(int64_t batch, int64_t length, int64_t channels, int64_t states,
                           int64_t chunk, int64_t threads, const float* x, const float* delta,
                           const float* A, const float* B, const float* C, const float* D,
                           const uint8_t* resets, const float* grad_y, const float* starts,
                           float* grad_x, float* grad_delta, float* grad_A, float* grad_B,
                           float* grad_C, float* grad_D, float* grad_state) {
  const Gradients whole = {grad_x,  grad_delta, grad_state, grad_A, grad_D,
                           nullptr, nullptr,    nullptr,    nullptr};
  return !backward({batch, length, channels, states, chunk, threads},
                   {x, delta, A, B, C, D, resets}, grad_y, starts, whole, grad_B, grad_C);
}

// x, delta, y (batch, channels); A (channels, states); B, C (batch, states); `state` (batch,
// channels, states) is moved on by one position.
int ehrmamba_scan_step(int64_t batch, int64_t channels, int64_t states, int64_t threads,
                       const float* x, const float* delta, const float* A, const float* B,
                       const float* C, const float* D, float* y, float* state) {
  step({batch, 1, channels, states, 1, threads}, {x, delta, A, B, C, D, nullptr}, y, state);
  return 0;
}
}
