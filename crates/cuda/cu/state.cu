// Layers with a recurrent state (`plimsoll-kernels`, state), token by token. A state is a run of f32 over a sequence's
// state pages, one after the other.

#define TAPS_MAX 8

// An element of a sequence's state.
DEVICE float* state_at(ptr pages, const u32* table, u32 page, u64 place) {
  return at<float>(pages) + (u64)table[place / page] * page + place % page;
}

// A thread for a channel of a sequence.
KERNEL(convolve, Convolve) {
  u32 channel = block_x() * block_threads() + thread_id();
  if (channel >= a.channels) return;
  Seq seq = at<Seq>(a.seqs)[block_y()];
  const u32* table = at<u32>(a.tables) + seq.table;
  u32 past = a.taps - 1;
  float weights[TAPS_MAX], before[TAPS_MAX];
  for (u32 k = 0; k < a.taps; k++) weights[k] = at<float>(a.weight)[(u64)channel * a.taps + k];
  float bias = a.bias ? at<float>(a.bias)[channel] : 0.0f;
  // What a sequence has before its first token is zeros, whatever the pages hold.
  for (u32 k = 0; k < past; k++)
    before[k] = seq.start ? *state_at(a.pages, table, a.page, a.from + (u64)k * a.channels + channel) : 0.0f;
  const float* x = at<float>(a.x) + (u64)seq.row * a.stride + a.x_from + channel;
  float* out = at<float>(a.out) + (u64)seq.row * a.channels + channel;
  for (u32 token = 0; token < seq.count; token++) {
    float sum = bias;
    for (u32 k = 0; k < a.taps; k++) {
      u32 n = token + k;
      sum = fma_rn(n < past ? before[n] : x[(u64)(n - past) * a.stride], weights[k], sum);
    }
    out[(u64)token * a.channels] = sum;
  }
  for (u32 k = 0; k < past; k++) {
    u32 n = seq.count + k;
    float kept = n < past ? before[n] : x[(u64)(n - past) * a.stride];
    *state_at(a.pages, table, a.page, a.from + (u64)k * a.channels + channel) = kept;
  }
}

// A thread for a row of a head of a sequence. Sixteen rows lie together, column by column.
KERNEL(scan, Scan) {
  u32 item = block_x() * block_threads() + thread_id();
  if (item >= a.heads * a.rows) return;
  u32 head = item / a.rows, row = item % a.rows, tile = row / LANES * LANES;
  u32 width = a.rows - tile < LANES ? a.rows - tile : LANES;
  Seq seq = at<Seq>(a.seqs)[block_y()];
  const u32* table = at<u32>(a.tables) + seq.table;
  u64 place = a.from + (u64)(head * a.rows + tile) * a.cols + row % LANES;
  u32 b_from = a.heads * a.rows + head / (a.heads / a.groups) * a.cols;
  float skip = at<float>(a.skip)[head];
  for (u32 token = 0; token < seq.count; token++) {
    const float* in = at<float>(a.x) + (u64)(seq.row + token) * a.x_stride;
    const float* steps = at<float>(a.steps) + (u64)(seq.row + token) * 2 * a.heads;
    const float* b = in + b_from;
    const float* c = b + a.groups * a.cols;
    float x = in[head * a.rows + row], keep = steps[a.heads + head];
    float taken = mul_rn(x, steps[head]);
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    bool begins = seq.start + token == 0;
    for (u32 i = 0; i < a.cols; i++) {
      float* h = state_at(a.pages, table, a.page, place + (u64)i * width);
      float now = fma_rn(taken, b[i], mul_rn(begins ? 0.0f : *h, keep));
      *h = now;
      sums[i % 4] = fma_rn(now, c[i], sums[i % 4]);
    }
    float sum = add_rn(add_rn(sums[0], sums[1]), add_rn(sums[2], sums[3]));
    at<float>(a.out)[(u64)(seq.row + token) * a.heads * a.rows + item] = fma_rn(x, skip, sum);
  }
}

// ln(1 + y) of a number that is not negative (`plimsoll-kernels`, math).
DEVICE float ln_1p_of(float y) {
  if (!(bits_of(y) < 0x7f800000u)) return y;
  double m = 1.0 + (double)y;
  int n = 0;
  while (m > 1.41421356237309504880) {
    m *= 0.5;
    n++;
  }
  double f = n ? m - 1.0 : (double)y;
  double s = f / (2.0 + f), z = s * s, p = 1.0 / 17.0;
  for (int i = 15; i > 0; i -= 2) p = fma_rn(p, z, 1.0 / (double)i);
  return (float)fma_rn((double)n, 0.69314718055994530942, 2.0 * s * p);
}

KERNEL(steps, Steps) {
  u64 row = block_x();
  const float* x = at<float>(a.x) + row * a.wide + a.from;
  float* out = at<float>(a.out) + row * 2 * a.heads;
  for (u32 i = thread_id(); i < a.heads; i += block_threads()) {
    float v = add_rn(x[i], at<float>(a.bias)[i]);
    float soft = v > 20.0f ? v : ln_1p_of(exp_of(v));
    float step = smaller(larger(soft, a.least), a.most);
    out[i] = step;
    out[a.heads + i] = exp_of(mul_rn(-step, exp_of(at<float>(a.decay)[i])));
  }
}

struct alignas(16) Quad { u32 w[4]; };

// `each` elements, by all blocks in the first direction.
template <typename T> DEVICE void copy_all(const T* from, T* to, u64 each) {
  u64 step = (u64)blocks_x() * block_threads();
  for (u64 i = (u64)block_x() * block_threads() + thread_id(); i < each; i += step) to[i] = from[i];
}

// Bytes of a page, as many at a time as divide it.
DEVICE void copy_page(ptr from, ptr to, u64 bytes) {
  if (bytes % 16 == 0) copy_all(at<Quad>(from), at<Quad>(to), bytes / 16);
  else if (bytes % 4 == 0) copy_all(at<u32>(from), at<u32>(to), bytes / 4);
  else copy_all(at<unsigned char>(from), at<unsigned char>(to), bytes);
}

// Pages to others.
KERNEL(copy_pages, CopyPages) {
  const u32* pair = at<u32>(a.pairs) + 2 * block_y();
  copy_page(a.pages + pair[0] * a.bytes, a.pages + pair[1] * a.bytes, a.bytes);
}

// Pages to their places in the host's memory, or from there.
KERNEL(move_pages, MovePages) {
  const u32* pair = at<u32>(a.pairs) + 2 * block_y();
  ptr page = a.pages + pair[0] * a.bytes, place = a.host + pair[1] * a.bytes;
  copy_page(a.out ? page : place, a.out ? place : page, a.bytes);
}
