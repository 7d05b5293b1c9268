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
  // A lane has elements of two rows.
  u32 seen_from[2], seen_to[2];
  Softmax all[2], part[2];
  float* out[2];
  float acc[DIM / 8][4];
  bool begun[2] = {false, false};
#pragma unroll
  for (u32 r = 0; r < 2; r++) {
    u32 row = top + g + r * 8, head = kv_head * group + row % group;
    bool there = row < count;
    u32 mine = position + row / group;
    seen_from[r] = there ? first_seen(a, mine) : 0;
    seen_to[r] = there ? mine + 1 : 0;
    all[r] = there ? softmax_start(a, head) : Softmax{NEGATIVE_INFINITY, 0.0f};
    part[r] = {NEGATIVE_INFINITY, 0.0f};
    out[r] = there ? at<float>(a.out) + ((u64)(token + row / group) * a.q_heads + head) * a.v_dim : 0;
  }
#pragma unroll
  for (u32 n = 0; n < DIM / 8; n++)
#pragma unroll
    for (u32 e = 0; e < 4; e++) acc[n][e] = 0.0f;
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
      float s[KEYS / 8][4];
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
      float largest[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY};
#pragma unroll
      for (u32 n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (u32 e = 0; e < 4; e++) {
          u32 key = tile * KEYS + n * 8 + t * 2 + e % 2;
          float score = mul_rn(s[n][e], a.scale);
          if (Scale<K>::elements > 0) score = mul_rn(score, scale[n * 8 + t * 2 + e % 2]);
          if (a.capped) score = mul_rn(tanh_of(mul_rn(score, div_rn(1.0f, a.cap))), a.cap);
          if (key < seen_from[e / 2] || key >= seen_to[e / 2]) score = NEGATIVE_INFINITY;
          s[n][e] = score;
          largest[e / 2] = larger(largest[e / 2], score);
        }
      float base[2], by[2];
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
#pragma unroll
      for (u32 n = 0; n < KEYS / 16; n++) {
        u32 fragment[4];
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
          if (Scale<K>::elements > 0) {
            const float* by = scale + KEYS + n * 16 + e / 2 * 8 + t * 2;
            fragment[e] = pair_of(mul_rn(wide(low), by[0]), mul_rn(wide(high), by[1]), C());
          }
        }
#pragma unroll
        for (u32 d = 0; d < DIM / 16; d++) {
          if (d * 16 >= v_dim) break;
          u32 right[4];
          load_transposed(right, v + (n * 16 + lane / 8 % 2 * 8 + lane % 8) * (v_dim + 8) + d * 16 + lane / 16 * 8);
          mma<C>(acc[2 * d], fragment, right);
          mma<C>(acc[2 * d + 1], fragment, right + 2);
        }
      }
      bool last = tile + 1 == tiles;
      if (last || (tile + 1) * KEYS % a.split == 0) {
        // The end of a part.
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
          part[r].sum = add_rn(part[r].sum, shuffle_xor(part[r].sum, 1));
          part[r].sum = add_rn(part[r].sum, shuffle_xor(part[r].sum, 2));
        }
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
          if (!out[r]) continue;
          u32 row = top + g + r * 8;
          if (blocks_z() > 1) {
            float* to = partial_of(a, token + row / group, kv_head * group + row % group, block_z());
            if (t == 0) to[0] = part[r].top, to[1] = part[r].sum;
#pragma unroll
            for (u32 n = 0; n < DIM / 8; n++)
#pragma unroll
              for (u32 e = 0; e < 2; e++)
                if (n * 8 + t * 2 + e < a.v_dim) to[2 + n * 8 + t * 2 + e] = acc[n][r * 2 + e];
            continue;
          }
          bool any = part[r].top != NEGATIVE_INFINITY;
          float old_by = 1.0f, new_by = 0.0f;
          if (any) join(&all[r], part[r], &old_by, &new_by);
#pragma unroll
          for (u32 n = 0; n < DIM / 8; n++)
#pragma unroll
            for (u32 e = 0; e < 2; e++) {
              u32 d = n * 8 + t * 2 + e;
              if (d >= a.v_dim) continue;
              float sum = begun[r] ? out[r][d] : 0.0f;
              if (any) sum = fma_rn(sum, old_by, mul_rn(acc[n][r * 2 + e], new_by));
              out[r][d] = last ? div_rn(sum, all[r].sum) : sum;
            }
          begun[r] = true;
          part[r] = {NEGATIVE_INFINITY, 0.0f};
        }
#pragma unroll
        for (u32 n = 0; n < DIM / 8; n++)
#pragma unroll
          for (u32 e = 0; e < 4; e++) acc[n][e] = 0.0f;
      }
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

#endif
