// Kernels that treat each token's row alone (`plimsoll-kernels`, rows).

KERNEL(embed, Embed) {
  u64 row = block_x();
  u32 token = at<u32>(a.tokens)[row] - a.from;
  float* out = at<float>(a.out) + row * a.width;
  // Before the first row is far behind the last one. Another rank's are zeros.
  bool here = token < a.rows;
  for (u32 i = thread_id(); i < a.k; i += block_threads())
    out[i] = here ? mul_rn(element(a.form, at<u32>(a.words), a.k, token, i), a.scale) : 0.0f;
}

KERNEL(add_position, AddPosition) {
  u64 row = block_x();
  u32 position = at<u32>(a.positions)[row] + a.offset;
  float* x = at<float>(a.x) + row * a.width;
  for (u32 i = thread_id(); i < a.k; i += block_threads())
    x[i] = add_rn(x[i], element(a.form, at<u32>(a.words), a.k, position, i));
}

// Cosine and sine of an angle that is not negative (`plimsoll-kernels`, math).
DEVICE void cos_sin(double x, double* cos, double* sin) {
  double n = rint_rn(x * 0.63661977236758134308);
  double r = fma_rn(-n, 1.57079632679489655800, x);
  r = fma_rn(-n, 6.12323399573676603587e-17, r);
  double z = r * r;
  double s = 1.0 / 1307674368000.0;
  s = fma_rn(-s, z, 1.0 / 6227020800.0);
  s = fma_rn(-s, z, 1.0 / 39916800.0);
  s = fma_rn(-s, z, 1.0 / 362880.0);
  s = fma_rn(-s, z, 1.0 / 5040.0);
  s = fma_rn(-s, z, 1.0 / 120.0);
  s = fma_rn(-s, z, 1.0 / 6.0);
  s = fma_rn(-(s * z), r, r);
  double c = 1.0 / 87178291200.0;
  c = fma_rn(-c, z, 1.0 / 479001600.0);
  c = fma_rn(-c, z, 1.0 / 3628800.0);
  c = fma_rn(-c, z, 1.0 / 40320.0);
  c = fma_rn(-c, z, 1.0 / 720.0);
  c = fma_rn(-c, z, 1.0 / 24.0);
  c = fma_rn(-c, z, 0.5);
  c = fma_rn(-c, z, 1.0);
  unsigned quarter = (unsigned)(unsigned long long)n & 3;
  *cos = quarter == 0 ? c : quarter == 1 ? -s : quarter == 2 ? -c : s;
  *sin = quarter == 0 ? s : quarter == 1 ? c : quarter == 2 ? -s : -c;
}

KERNEL(rotary, Rotary) {
  u64 row = block_x();
  float position = (float)at<u32>(a.positions)[row];
  float* out = at<float>(a.out) + row * 2 * a.pairs;
  for (u32 i = thread_id(); i < a.pairs; i += block_threads()) {
    float f = at<float>(a.frequencies)[i];
    if (a.divisors) f = div_rn(f, at<float>(a.divisors)[i]);
    double cos, sin;
    cos_sin((double)mul_rn(position, f), &cos, &sin);
    out[i] = mul_rn((float)cos, a.scale);
    out[a.pairs + i] = mul_rn((float)sin, a.scale);
  }
}

// The lanes of half a warp added up, first to last.
DEVICE float sum_of_lanes(float x) {
  float sum = 0.0f;
  for (unsigned i = 0; i < LANES; i++) sum = add_rn(sum, shuffle(x, i));
  return sum;
}

KERNEL(norm, Norm) {
  SHARED float stats[2];
  u64 row = block_x() / a.heads, head = block_x() % a.heads;
  const float* x = at<float>(a.x) + row * a.width + a.from + head * a.head;
  float* out = at<float>(a.out) + row * a.width + a.from + head * a.head;
  u32 thread = thread_id();
  if (thread < 32) {
    // Both halves of the warp do the same.
    u32 lane = thread % LANES;
    float n = (float)a.head, mean = 0.0f;
    if (a.layer) {
      float sum = 0.0f;
      for (u32 i = lane; i < a.head; i += LANES) sum = add_rn(sum, x[i]);
      mean = div_rn(sum_of_lanes(sum), n);
    }
    float squares = 0.0f;
    for (u32 i = lane; i < a.head; i += LANES) {
      float d = sub_rn(x[i], mean);
      squares = fma_rn(d, d, squares);
    }
    squares = sum_of_lanes(squares);
    if (thread == 0) {
      stats[0] = mean;
      stats[1] = div_rn(1.0f, sqrt_rn(add_rn(div_rn(squares, n), a.eps)));
    }
  }
  sync_block();
  for (u32 i = thread; i < a.head; i += block_threads()) {
    float y = mul_rn(sub_rn(x[i], stats[0]), stats[1]);
    if (a.weight) y = mul_rn(y, at<float>(a.weight)[i]);
    if (a.bias) y = add_rn(y, at<float>(a.bias)[i]);
    out[i] = y;
  }
}

KERNEL(rotate, Rotate) {
  u64 row = block_x();
  const float* cos = at<float>(a.table) + row * 2 * a.pairs;
  const float* sin = cos + a.pairs;
  float* x = at<float>(a.x) + row * a.width + a.from;
  for (u32 i = thread_id(); i < a.heads * a.pairs; i += block_threads()) {
    u32 pair = i % a.pairs;
    float* head = x + (u64)(i / a.pairs) * a.head;
    float* low = head + (a.interleaved ? 2 * pair : pair);
    float* high = a.interleaved ? low + 1 : low + a.pairs;
    float p = *low, q = *high, c = cos[pair], s = sin[pair];
    *low = sub_rn(mul_rn(p, c), mul_rn(q, s));
    *high = add_rn(mul_rn(q, c), mul_rn(p, s));
  }
}

DEVICE float activation(u32 kind, float x) {
  switch (kind) {
    case 0: return div_rn(x, add_rn(exp_of(sub_rn(0.0f, x)), 1.0f));
    case 1: {
      float cube = mul_rn(mul_rn(x, x), x);
      float t = tanh_of(mul_rn(fma_rn(cube, 0.044715f, x), 0.7978846f));
      return mul_rn(mul_rn(x, 0.5f), add_rn(t, 1.0f));
    }
    case 2: return mul_rn(mul_rn(x, 0.5f), add_rn(erf_of(mul_rn(x, 0.70710678118654752440f)), 1.0f));
    case 3: return larger(x, 0.0f);
    default: return div_rn(1.0f, add_rn(exp_of(sub_rn(0.0f, x)), 1.0f));
  }
}

KERNEL(activate, Activate) {
  u64 row = block_x();
  const float* gate = at<float>(a.gate) + row * a.gate_stride;
  const float* up = at<float>(a.up) + row * a.up_stride;
  float* out = at<float>(a.out) + row * a.width;
  for (u32 i = thread_id(); i < a.width; i += block_threads()) {
    float y = activation(a.kind, gate[i]);
    out[i] = a.up ? mul_rn(y, up[i]) : y;
  }
}

KERNEL(clamped_swiglu, ClampedSwiglu) {
  u64 row = block_x();
  const float* x = at<float>(a.x) + row * 2 * a.width;
  float* out = at<float>(a.out) + row * a.width;
  for (u32 i = thread_id(); i < a.width; i += block_threads()) {
    // In this order NaN stays.
    float gate = smaller(a.limit, x[2 * i]);
    float up = larger(-a.limit, smaller(a.limit, x[2 * i + 1]));
    float share = add_rn(exp_of(sub_rn(0.0f, mul_rn(gate, a.alpha))), 1.0f);
    out[i] = mul_rn(div_rn(gate, share), add_rn(up, 1.0f));
  }
}

KERNEL(add, Add) {
  u64 i = (u64)block_x() * block_threads() + thread_id();
  if (i >= a.len) return;
  float* out = at<float>(a.out) + i;
  *out = add_rn(*out, mul_rn(at<float>(a.x)[i], a.scale));
}

KERNEL(add_weighted, AddWeighted) {
  u64 row = block_x();
  const float* weights = at<float>(a.weights) + row * a.wide + a.from;
  const float* x = at<float>(a.x) + row * a.count * a.width;
  float* out = at<float>(a.out) + row * a.width;
  for (u32 i = thread_id(); i < a.width; i += block_threads()) {
    float sum = 0.0f;
    for (u32 j = 0; j < a.count; j++) sum = add_rn(sum, mul_rn(weights[j], x[(u64)j * a.width + i]));
    out[i] = add_rn(a.add ? out[i] : 0.0f, mul_rn(sum, a.scale));
  }
}

// In the order of ranks, as threads of one process add up (`plimsoll-runtime`, collective).
KERNEL(sum_ranks, SumRanks) {
  u64 i = (u64)block_x() * block_threads() + thread_id();
  if (i >= a.len) return;
  const float* parts = at<float>(a.parts) + i;
  float sum = parts[0];
  for (u32 rank = 1; rank < a.ranks; rank++) sum = add_rn(sum, parts[rank * a.len]);
  at<float>(a.out)[i] = sum;
}

KERNEL(join_ranks, JoinRanks) {
  u64 row = block_x();
  const float* parts = at<float>(a.parts) + row * a.each;
  float* out = at<float>(a.out) + row * a.width;
  for (u32 i = thread_id(); i < a.width; i += block_threads())
    out[i] = parts[(u64)(i / a.each) * a.rows * a.each + i % a.each];
}

KERNEL(gather, Gather) {
  u64 row = block_x();
  const float* x = at<float>(a.x) + (u64)at<u32>(a.wanted)[row] * a.width;
  float* out = at<float>(a.out) + row * a.width;
  for (u32 i = thread_id(); i < a.width; i += block_threads()) out[i] = x[i];
}

KERNEL(cap, Cap) {
  u64 i = (u64)block_x() * block_threads() + thread_id();
  if (i >= a.len) return;
  float* x = at<float>(a.x) + i;
  float y = *x;
  if (a.capped) y = mul_rn(tanh_of(div_rn(y, a.cap)), a.cap);
  *x = mul_rn(y, a.scale);
}

// Numbers in an order in which every one has its place (`f32::total_cmp`).
DEVICE int in_order(float x) {
  int b = (int)bits_of(x);
  return b ^ (int)((unsigned)(b >> 31) >> 1);
}

DEVICE float sigmoid_of(float x) { return div_rn(1.0f, add_rn(1.0f, exp_of(-x))); }

// How many of `count` keys come before the one at `of`: larger ones, and of equal ones the first.
DEVICE u32 rank_of(const float* keys, u32 count, u32 of) {
  int key = in_order(keys[of]);
  u32 rank = 0;
  for (u32 i = 0; i < count; i++) {
    int other = in_order(keys[i]);
    rank += other > key || (other == key && i < of);
  }
  return rank;
}

// One block for a row. Shared: a key for each expert, a judgement for each group, whether each expert is taken.
KERNEL(route, Route) {
  u64 row = block_x();
  const float* logits = at<float>(a.logits) + row * a.experts;
  float* out = at<float>(a.out) + row * 2 * a.taken;
  float* keys = dynamic_shared<float>();
  float* judged = keys + a.experts;
  u32* chosen = (u32*)(judged + a.groups);
  u32 thread = thread_id(), threads = block_threads();
  for (u32 e = thread; e < a.experts; e += threads) {
    float score = a.sigmoid ? sigmoid_of(logits[e]) : logits[e];
    keys[e] = add_rn(score, a.bias ? at<float>(a.bias)[e] : 0.0f);
  }
  sync_block();
  u32 size = a.groups ? a.experts / a.groups : a.experts;
  for (u32 g = thread; g < a.groups; g += threads) {
    float sum = 0.0f;
    // The largest first, as a sum is rounded.
    for (u32 n = 0; n < a.best; n++)
      for (u32 i = 0; i < size; i++)
        if (rank_of(keys + g * size, size, i) == n) sum = n ? add_rn(sum, keys[g * size + i]) : keys[g * size + i];
    judged[g] = add_rn(sum, 0.0f);
  }
  sync_block();
  for (u32 e = thread; e < a.experts; e += threads)
    chosen[e] = !a.groups || rank_of(judged, a.groups, e / size) < a.groups_taken;
  sync_block();
  // Of those, the ones that less than `taken` of those come before. Each looks at others' marks, and then sets its own.
  u32 mine = 0;
  for (u32 e = thread, bit = 0; e < a.experts; e += threads, bit++) {
    if (!chosen[e]) continue;
    int key = in_order(keys[e]);
    u32 rank = 0;
    for (u32 i = 0; i < a.experts; i++) {
      int other = in_order(keys[i]);
      rank += chosen[i] && (other > key || (other == key && i < e));
    }
    if (rank < a.taken) mine |= 1u << bit;
  }
  sync_block();
  for (u32 e = thread, bit = 0; e < a.experts; e += threads, bit++) chosen[e] = mine >> bit & 1;
  sync_block();
  if (thread != 0) return;
  float top = -3.40282347e+38f;
  for (u32 e = 0; e < a.experts; e++) top = logits[e] > top ? logits[e] : top;
  u32 n = 0;
  float sum = a.renormalise ? 0.0f : 1.0f;
  for (u32 e = 0; e < a.experts; e++) {
    if (!chosen[e] || n == a.taken) continue;
    float score = a.sigmoid ? sigmoid_of(logits[e]) : exp_of(sub_rn(logits[e], top));
    out[n] = (float)e;
    out[a.taken + n] = score;
    if (a.renormalise) sum = add_rn(sum, score);
    n++;
  }
  if (a.renormalise && a.sigmoid) sum = add_rn(sum, 1e-20f);
  if (!a.renormalise && !a.sigmoid) {
    sum = 0.0f;
    for (u32 e = 0; e < a.experts; e++) sum = add_rn(sum, exp_of(sub_rn(logits[e], top)));
  }
  for (u32 i = 0; i < a.taken; i++) out[a.taken + i] = div_rn(out[a.taken + i], sum);
}
