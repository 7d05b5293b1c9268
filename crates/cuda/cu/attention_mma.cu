// Attention over paged keys and values on tensor cores: of one sequence and one KV head, up to QUERIES rows, a row being a
// token with one of its query heads; softmax as it goes (Dao, FlashAttention-2). Keys are treated in parts of `a.split`
// that begin at multiples of it, each for itself in tiles that begin at multiples of their size; then the parts are put
// together in order. So a row's result depends neither on the other rows nor on who has which part: one block that has
// all of them (`blocks_z() == 1`), or a block for each and `combine`.

#ifdef TENSOR_CORES

#define QUERIES 64

// Of the parts of a row so far, by the largest score `top`: the sum of weights, and of values.
struct Softmax { float top, sum; };

// What a part adds: what sums so far, and its own, are multiplied by.
DEVICE void join(Softmax* so_far, Softmax part, float* old_by, float* new_by) {
  float top = larger(so_far->top, part.top);
  *old_by = exp_of(sub_rn(so_far->top, top));
  *new_by = exp_of(sub_rn(part.top, top));
  so_far->sum = fma_rn(so_far->sum, *old_by, mul_rn(part.sum, *new_by));
  so_far->top = top;
}

DEVICE Softmax softmax_start(const Kv& a, u32 head) {
  Softmax s = {NEGATIVE_INFINITY, 0.0f};
  if (a.sinks) s = {at<float>(a.sinks)[head], 1.0f};
  return s;
}

// Where a part of a token's head is kept: its largest score, its sum, its values.
DEVICE float* partial_of(const Kv& a, u32 token, u32 head, u32 part) {
  return at<float>(a.partials) + ((u64)(token * a.q_heads + head) * a.splits + part) * (a.v_dim + 2);
}

// Elements on their way to shared memory, as they are multiplied: eight that lie side by side, or one; zeros where they are
// not `there`.
template <typename C> DEVICE void stage(C* to, const C* from, bool eight, bool there) {
  if (eight) copy_16(to, from, there ? 16 : 0);
  else if (there) *to = *from;
  else to->bits = 0;
}
// Eight bits are made sixteen on the way: that is exact.
template <typename C, typename K> DEVICE void stage(C* to, const K* from, bool eight, bool there) {
  struct alignas(8) Eight { K elements[8]; } all;
  if (!eight) {
    narrow(there ? wide(*from) : 0.0f, to);
    return;
  }
  if (there) all = *(const Eight*)from;
  Sixteen out;
  for (u32 i = 0; i < 4; i++)
    out.words[i] = there ? pair_of(wide(all.elements[2 * i]), wide(all.elements[2 * i + 1]), C()) : 0;
  *(Sixteen*)to = out;
}

// A tile of keys and values, kept as K, and where K has scales those of the keys, then of the values. What is past the
// dimensions, and values outside [first, end), are zeros: weights of zero meet them. Keys outside are any.
template <typename C, typename K, u32 KEYS> DEVICE void stage_keys(const Kv& a, const u32* table, u32 head, u32 tile,
                                                                   u32 first, u32 end, C* keys, C* values, float* scales) {
  const u32 WIDE = KEYS + 8;
  u32 k_dim = (a.k_dim + 15) / 16 * 16, v_dim = (a.v_dim + 15) / 16 * 16;
  const K* pages = at<K>(a.pages);
  // Eight elements at once where eight keys of a page lie side by side.
  bool eights = a.slots % 8 == 0 && a.v_dim % 8 == 0 && a.page % 8 == 0 && a.layer % 8 == 0;
  u32 each = eights ? 8 : 1;
  for (u32 i = thread_id(); i < k_dim * (KEYS / each); i += block_threads()) {
    u32 d = i / (KEYS / each), key = i % (KEYS / each) * each, position = tile * KEYS + key;
    bool there = d < a.k_dim && position < end && position + each > first;
    const K* from = pages;
    if (there) from += keys_at<K>(a, table[position / a.slots], head) + (u64)d * a.slots + position % a.slots;
    stage(keys + d * WIDE + key, from, eights, there);
  }
  u32 across = v_dim / each;
  for (u32 i = thread_id(); i < KEYS * across; i += block_threads()) {
    u32 key = i / across, d = i % across * each, position = tile * KEYS + key;
    bool there = d < a.v_dim && position >= first && position < end;
    const K* from = pages;
    if (there) from += values_at<K>(a, table[position / a.slots], head) + (u64)(position % a.slots) * a.v_dim + d;
    stage(values + key * (v_dim + 8) + d, from, eights, there);
  }
  if (Scale<K>::elements == 0) return;
  for (u32 i = thread_id(); i < 2 * KEYS; i += block_threads()) {
    u32 position = tile * KEYS + i % KEYS, of = i < KEYS ? head : a.kv_heads + head;
    bool there = position >= first && position < end;
    scales[i] = 0.0f;
    if (there)
      scales[i] = load_float(pages + scales_at<K>(a, table[position / a.slots], of) + (u64)(position % a.slots) * Scale<K>::elements);
  }
}

// Sixteen rows of a warp, and DIM elements of their values from `v_from` on, over tiles of KEYS keys. A lane has elements of two
// rows.
template <typename C, u32 DIM, u32 KEYS> struct Warp {
  u32 seen_from[2], seen_to[2];
  Softmax all[2], part[2];
  // Where results go, and where those of a part do; nothing where there is no row.
  float *out[2], *partial[2];
  bool begun[2];
  float acc[DIM / 8][4];

  DEVICE_MEMBER void clear() {
#pragma unroll
    for (u32 n = 0; n < DIM / 8; n++)
#pragma unroll
      for (u32 e = 0; e < 4; e++) acc[n][e] = 0.0f;
  }

  DEVICE_MEMBER void begin(u32 r, bool there, u32 from, u32 to, Softmax start, float* out_of, float* partial_to) {
    seen_from[r] = there ? from : 0;
    seen_to[r] = there ? to : 0;
    all[r] = there ? start : Softmax{NEGATIVE_INFINITY, 0.0f};
    part[r] = {NEGATIVE_INFINITY, 0.0f};
    out[r] = there ? out_of : 0;
    partial[r] = partial_to;
    begun[r] = false;
  }

  // Scores of a tile that begins with key `first`: those that a row does not see become none, and what its part has so far is
  // brought to the largest that it has now. `base` is what weights are taken off.
  DEVICE_MEMBER void look(float s[KEYS / 8][4], u32 first, float base[2]) {
    float largest[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY};
    u32 t = thread_id() % 4;
#pragma unroll
    for (u32 n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (u32 e = 0; e < 4; e++) {
        u32 key = first + n * 8 + t * 2 + e % 2;
        if (key < seen_from[e / 2] || key >= seen_to[e / 2]) s[n][e] = NEGATIVE_INFINITY;
        largest[e / 2] = larger(largest[e / 2], s[n][e]);
      }
    float by[2];
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
      largest[r] = larger(largest[r], shuffle_xor(largest[r], 1));
      largest[r] = larger(largest[r], shuffle_xor(largest[r], 2));
      float now = larger(part[r].top, largest[r]);
      // Where nothing was seen yet there is nothing to be multiplied, and no weight but zero.
      base[r] = now == NEGATIVE_INFINITY ? 0.0f : now;
      by[r] = part[r].top == NEGATIVE_INFINITY ? 1.0f : exp_near(sub_rn(part[r].top, base[r]));
      part[r].top = now;
      part[r].sum = mul_rn(part[r].sum, by[r]);
    }
#pragma unroll
    for (u32 n = 0; n < DIM / 8; n++)
#pragma unroll
      for (u32 e = 0; e < 4; e++) acc[n][e] = mul_rn(acc[n][e], by[e / 2]);
  }

  // The weights of keys 16 n and on, and their sums. `scales`: of the values of a tile, or none.
  DEVICE_MEMBER void weigh(float s[KEYS / 8][4], u32 n, const float base[2], const float* scales, u32 fragment[4]) {
    u32 t = thread_id() % 4;
#pragma unroll
    for (u32 e = 0; e < 4; e++) {
      float p[2];
#pragma unroll
      for (u32 i = 0; i < 2; i++) {
        float score = s[2 * n + e / 2][e % 2 * 2 + i];
        p[i] = score == NEGATIVE_INFINITY ? 0.0f : exp_near(sub_rn(score, base[e % 2]));
      }
      fragment[e] = pair_of(p[0], p[1], C());
      // What is added up is what values are multiplied by.
      C low = {(unsigned short)fragment[e]}, high = {(unsigned short)(fragment[e] >> 16)};
      part[e % 2].sum = add_rn(part[e % 2].sum, add_rn(wide(low), wide(high)));
      if (scales) {
        const float* by = scales + n * 16 + e / 2 * 8 + t * 2;
        fragment[e] = pair_of(mul_rn(wide(low), by[0]), mul_rn(wide(high), by[1]), C());
      }
    }
  }

  // Values of keys 16 n and on, `[key][wide]` from `v` on, times their weights.
  DEVICE_MEMBER void add_values(const C* v, u32 wide, u32 n, const u32 fragment[4], u32 v_from, u32 v_dim) {
    u32 lane = thread_id() % 32;
#pragma unroll
    for (u32 d = 0; d < DIM / 16; d++) {
      if (v_from + d * 16 >= v_dim) break;
      u32 right[4];
      load_transposed(right, v + (n * 16 + lane / 8 % 2 * 8 + lane % 8) * wide + v_from + d * 16 + lane / 16 * 8);
      mma<C>(acc[2 * d], fragment, right);
      mma<C>(acc[2 * d + 1], fragment, right + 2);
    }
  }

  // The end of a part: it is joined to those before, or kept apart. `v_dim` values of a head there are in all.
  DEVICE_MEMBER void end_part(bool last, u32 v_from, u32 v_dim) {
    u32 t = thread_id() % 4;
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
      part[r].sum = add_rn(part[r].sum, shuffle_xor(part[r].sum, 1));
      part[r].sum = add_rn(part[r].sum, shuffle_xor(part[r].sum, 2));
    }
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
      if (!out[r]) continue;
      if (partial[r]) {
        if (t == 0 && v_from == 0) partial[r][0] = part[r].top, partial[r][1] = part[r].sum;
#pragma unroll
        for (u32 n = 0; n < DIM / 8; n++)
#pragma unroll
          for (u32 e = 0; e < 2; e++) {
            u32 d = v_from + n * 8 + t * 2 + e;
            if (d < v_dim) partial[r][2 + d] = acc[n][r * 2 + e];
          }
        continue;
      }
      bool any = part[r].top != NEGATIVE_INFINITY;
      float old_by = 1.0f, new_by = 0.0f;
      if (any) join(&all[r], part[r], &old_by, &new_by);
#pragma unroll
      for (u32 n = 0; n < DIM / 8; n++)
#pragma unroll
        for (u32 e = 0; e < 2; e++) {
          u32 d = v_from + n * 8 + t * 2 + e;
          if (d >= v_dim) continue;
          float sum = begun[r] ? out[r][d] : 0.0f;
          if (any) sum = fma_rn(sum, old_by, mul_rn(acc[n][r * 2 + e], new_by));
          out[r][d] = last ? div_rn(sum, all[r].sum) : sum;
        }
      begun[r] = true;
      part[r] = {NEGATIVE_INFINITY, 0.0f};
    }
    clear();
  }
};

// C: what is multiplied; K: what keys and values are kept as. DIM: values of a head at most. STAGES: tiles that are in
// shared memory at once.
template <typename C, typename K, u32 DIM, u32 KEYS, u32 STAGES> DEVICE void attend_mma(const Kv& a) {
  const u32 WIDE = KEYS + 8;
  u32 token = block_x(), kv_head = block_y(), group = a.q_heads / a.kv_heads, together = QUERIES / group;
  Seq seq = at<Seq>(a.seqs)[at<u32>(a.of)[token]];
  u32 begin = token - seq.row;
  // The block of the first of some tokens has all of them.
  if (begin % together) return;
  u32 tokens = seq.count - begin < together ? seq.count - begin : together, count = tokens * group;
  u32 position = seq.start + begin;
  u32 first = first_seen(a, position), end = position + tokens;
  // The keys of this block: all, or those of a part.
  if (blocks_z() > 1) {
    u64 from = (u64)block_z() * a.split;
    if (from >= end || from + a.split <= first) return;
    if (from > first) first = (u32)from;
    if (from + a.split < end) end = (u32)from + a.split;
  }
  const u32* table = at<u32>(a.tables) + seq.table;
  u32 k_dim = (a.k_dim + 15) / 16 * 16, v_dim = (a.v_dim + 15) / 16 * 16, q_wide = k_dim + 8;
  C* q = dynamic_shared<C>();
  C* keys = q + QUERIES * q_wide;
  C* values = keys + STAGES * k_dim * WIDE;
  float* scales = (float*)(values + STAGES * KEYS * (v_dim + 8));
  u32 thread = thread_id(), lane = thread % 32, g = lane / 4, t = lane % 4, top = thread / 32 * 16;
  for (u32 i = thread; i < QUERIES * k_dim; i += block_threads()) {
    u32 row = i / k_dim, d = i % k_dim;
    float x = 0.0f;
    if (row < count && d < a.k_dim)
      x = at<float>(a.q)[(u64)(token + row / group) * a.q_stride + (u64)(kv_head * group + row % group) * a.k_dim + d];
    narrow(x, q + row * q_wide + d);
  }
  Warp<C, DIM, KEYS> warp;
#pragma unroll
  for (u32 r = 0; r < 2; r++) {
    u32 row = top + g + r * 8, head = kv_head * group + row % group, of = token + row / group;
    bool there = row < count;
    u32 mine = position + row / group;
    Softmax start = {NEGATIVE_INFINITY, 0.0f};
    if (there) start = softmax_start(a, head);
    warp.begin(r, there, there ? first_seen(a, mine) : 0, mine + 1, start,
               at<float>(a.out) + ((u64)of * a.q_heads + head) * a.v_dim,
               blocks_z() > 1 ? partial_of(a, of, head, block_z()) : 0);
  }
  warp.clear();
  u32 tile = first / KEYS, tiles = (end + KEYS - 1) / KEYS, stage = 0;
  stage_keys<C, K, KEYS>(a, table, kv_head, tile, first, end, keys, values, scales);
  copy_commit();
  for (; tile < tiles; tile++) {
    if (STAGES > 1) {
      u32 next = (stage + 1) % STAGES;
      if (tile + 1 < tiles)
        stage_keys<C, K, KEYS>(a, table, kv_head, tile + 1, first, end, keys + next * k_dim * WIDE,
                               values + next * KEYS * (v_dim + 8), scales + next * 2 * KEYS);
      copy_commit();
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    sync_block();
    if (top < count) {
      const C* k = keys + stage * k_dim * WIDE;
      const C* v = values + stage * KEYS * (v_dim + 8);
      const float* scale = scales + stage * 2 * KEYS;
      float s[KEYS / 8][4], base[2];
#pragma unroll
      for (u32 n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (u32 e = 0; e < 4; e++) s[n][e] = 0.0f;
      for (u32 d = 0; d < k_dim; d += 16) {
        u32 fragment[4];
#pragma unroll
        for (u32 e = 0; e < 4; e++)
          fragment[e] = *(const u32*)(q + (top + g + e % 2 * 8) * q_wide + d + t * 2 + e / 2 * 8);
#pragma unroll
        for (u32 n = 0; n < KEYS / 16; n++) {
          u32 right[4];
          load_transposed(right, k + (d + lane / 8 % 2 * 8 + lane % 8) * WIDE + n * 16 + lane / 16 * 8);
          mma<C>(s[2 * n], fragment, right);
          mma<C>(s[2 * n + 1], fragment, right + 2);
        }
      }
#pragma unroll
      for (u32 n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (u32 e = 0; e < 4; e++) {
          float score = mul_rn(s[n][e], a.scale);
          if (Scale<K>::elements > 0) score = mul_rn(score, scale[n * 8 + t * 2 + e % 2]);
          if (a.capped) score = mul_rn(tanh_of(mul_rn(score, div_rn(1.0f, a.cap))), a.cap);
          s[n][e] = score;
        }
      warp.look(s, tile * KEYS, base);
#pragma unroll
      for (u32 n = 0; n < KEYS / 16; n++) {
        u32 fragment[4];
        warp.weigh(s, n, base, Scale<K>::elements > 0 ? scale + KEYS : 0, fragment);
        warp.add_values(v, v_dim + 8, n, fragment, 0, v_dim);
      }
      bool last = tile + 1 == tiles;
      if (last || (tile + 1) * KEYS % a.split == 0) warp.end_part(last, 0, a.v_dim);
    }
    // Nobody reads what comes next into this tile's place.
    sync_block();
    if (STAGES > 1) {
      stage = (stage + 1) % STAGES;
    } else if (tile + 1 < tiles) {
      stage_keys<C, K, KEYS>(a, table, kv_head, tile + 1, first, end, keys, values, scales);
      copy_commit();
    }
  }
}

// Latents: what all heads of a token look at is one row, whose first `v_dim` elements are their values too. A block has
// LATENT_ROWS rows, a token with one of its heads, and all of its values: of four warps two have the same rows, and a half of
// the values each.
#define LATENT_ROWS 32
#define LATENT_KEYS 32
#define LATENT_HALF 256

template <typename C, typename K> DEVICE void stage_latents(const Latents& a, const u32* table, u32 tile, u32 first, u32 end, C* to) {
  u32 dims = (a.k_dim + 15) / 16 * 16;
  const K* pages = at<K>(a.pages);
  bool eights = a.k_dim % 8 == 0 && a.page % 8 == 0 && a.layer % 8 == 0;
  u32 each = eights ? 8 : 1, across = dims / each;
  for (u32 i = thread_id(); i < LATENT_KEYS * across; i += block_threads()) {
    u32 key = i / across, d = i % across * each, position = tile * LATENT_KEYS + key;
    bool there = d < a.k_dim && position >= first && position < end;
    const K* from = pages;
    if (there) from += latent_at<K>(a, table, position) + d;
    stage(to + key * (dims + 8) + d, from, eights, there);
  }
}

template <typename C, typename K> DEVICE void attend_latents_mma(const Latents& a) {
  u32 token = block_x(), tokens_of = a.heads < LATENT_ROWS ? LATENT_ROWS / a.heads : 1;
  Seq seq = at<Seq>(a.seqs)[at<u32>(a.of)[token]];
  u32 begin = token - seq.row;
  if (begin % tokens_of) return;
  // Rows of a token, and the head of the first.
  u32 head = block_y() * LATENT_ROWS, group = a.heads - head < LATENT_ROWS ? a.heads - head : LATENT_ROWS;
  u32 tokens = seq.count - begin < tokens_of ? seq.count - begin : tokens_of, count = tokens * group;
  u32 position = seq.start + begin, first = 0, end = position + tokens;
  if (blocks_z() > 1) {
    u64 from = (u64)block_z() * a.split;
    if (from >= end) return;
    first = (u32)from;
    if (from + a.split < end) end = (u32)from + a.split;
  }
  const u32* table = at<u32>(a.tables) + seq.table;
  u32 k_dim = (a.k_dim + 15) / 16 * 16, wide = k_dim + 8, v_dim = (a.v_dim + 15) / 16 * 16, rope = a.k_dim - a.v_dim;
  C* q = dynamic_shared<C>();
  C* rows = q + LATENT_ROWS * wide;
  u32 thread = thread_id(), lane = thread % 32, g = lane / 4, t = lane % 4;
  u32 top = thread / 32 % 2 * 16, v_from = thread / 64 * LATENT_HALF;
  for (u32 i = thread; i < LATENT_ROWS * k_dim; i += block_threads()) {
    u32 row = i / k_dim, d = i % k_dim, of = token + row / group, h = head + row % group;
    float x = 0.0f;
    if (row < count && d < a.k_dim)
      x = d < a.v_dim ? at<float>(a.q)[(u64)of * a.q_stride + (u64)h * a.v_dim + d]
                      : at<float>(a.q_rope)[(u64)of * a.rope_stride + (u64)h * rope + d - a.v_dim];
    narrow(x, q + row * wide + d);
  }
  Warp<C, LATENT_HALF, LATENT_KEYS> warp;
#pragma unroll
  for (u32 r = 0; r < 2; r++) {
    u32 row = top + g + r * 8, of = token + row / group, h = head + row % group;
    float* partial = at<float>(a.partials) + ((u64)(of * a.heads + h) * a.splits + block_z()) * (a.v_dim + 2);
    warp.begin(r, row < count && v_from < a.v_dim, 0, position + row / group + 1, {NEGATIVE_INFINITY, 0.0f},
               at<float>(a.out) + (u64)of * a.out_stride + (u64)h * a.v_dim, blocks_z() > 1 ? partial : 0);
  }
  warp.clear();
  u32 tiles = (end + LATENT_KEYS - 1) / LATENT_KEYS;
  for (u32 tile = first / LATENT_KEYS; tile < tiles; tile++) {
    stage_latents<C, K>(a, table, tile, first, end, rows);
    copy_commit();
    copy_wait<0>();
    sync_block();
    if (top < count && v_from < v_dim) {
      float s[LATENT_KEYS / 8][4], base[2];
#pragma unroll
      for (u32 n = 0; n < LATENT_KEYS / 8; n++)
#pragma unroll
        for (u32 e = 0; e < 4; e++) s[n][e] = 0.0f;
      for (u32 d = 0; d < k_dim; d += 16) {
        u32 fragment[4];
#pragma unroll
        for (u32 e = 0; e < 4; e++)
          fragment[e] = *(const u32*)(q + (top + g + e % 2 * 8) * wide + d + t * 2 + e / 2 * 8);
#pragma unroll
        for (u32 n = 0; n < LATENT_KEYS / 8; n++) {
          u32 right[2];
#pragma unroll
          for (u32 e = 0; e < 2; e++) right[e] = *(const u32*)(rows + (n * 8 + g) * wide + d + t * 2 + e * 8);
          mma<C>(s[n], fragment, right);
        }
      }
#pragma unroll
      for (u32 n = 0; n < LATENT_KEYS / 8; n++)
#pragma unroll
        for (u32 e = 0; e < 4; e++) s[n][e] = mul_rn(s[n][e], a.scale);
      warp.look(s, tile * LATENT_KEYS, base);
#pragma unroll
      for (u32 n = 0; n < LATENT_KEYS / 16; n++) {
        u32 fragment[4];
        warp.weigh(s, n, base, 0, fragment);
        warp.add_values(rows, wide, n, fragment, v_from, v_dim);
      }
      bool last = tile + 1 == tiles;
      if (last || (tile + 1) * LATENT_KEYS % a.split == 0) warp.end_part(last, v_from, a.v_dim);
    }
    sync_block();
  }
}

// Puts the parts of a token's head together: a block for each.
KERNEL(combine, Kv) {
  u32 token = block_x(), head = block_y();
  Seq seq = at<Seq>(a.seqs)[at<u32>(a.of)[token]];
  u32 position = seq.start + token - seq.row, first = first_seen(a, position);
  float* out = at<float>(a.out) + ((u64)token * a.q_heads + head) * a.v_dim;
  for (u32 d = thread_id(); d < a.v_dim; d += block_threads()) {
    Softmax all = softmax_start(a, head);
    float sum = 0.0f;
    for (u32 i = first / a.split; i <= position / a.split; i++) {
      const float* from = partial_of(a, token, head, i);
      Softmax part = {from[0], from[1]};
      if (part.top == NEGATIVE_INFINITY) continue;
      float old_by, new_by;
      join(&all, part, &old_by, &new_by);
      sum = fma_rn(sum, old_by, mul_rn(from[2 + d], new_by));
    }
    out[d] = div_rn(sum, all.sum);
  }
}

#define ATTENTION_MMA(name, C, K)                                                \
  KERNEL(attend_mma_##name##_64, Kv) { attend_mma<C, K, 64, 64, 2>(a); }         \
  KERNEL(attend_mma_##name##_128, Kv) { attend_mma<C, K, 128, 64, 2>(a); }       \
  KERNEL(attend_mma_##name##_256, Kv) { attend_mma<C, K, 256, 32, 1>(a); }

ATTENTION_MMA(bf16, bf16, bf16)
ATTENTION_MMA(f16, f16, f16)
ATTENTION_MMA(fp8, bf16, f8)
ATTENTION_MMA(int8, bf16, i8)

#define LATENTS_MMA(name, C, K) \
  KERNEL(attend_latents_mma_##name, Latents) { attend_latents_mma<C, K>(a); }

LATENTS_MMA(bf16, bf16, bf16)
LATENTS_MMA(f16, f16, f16)
LATENTS_MMA(fp8, bf16, f8)

#endif
